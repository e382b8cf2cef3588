"""What ``trainer.unlearn`` returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_unlearn._base.notebook import box, folded, table
from lightning_unlearn._base.text import number, printable
from lightning_unlearn.certificate import receipts
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.inbox.answers import Answers
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.certificate.report.evidence import (
    Evidence,
    Quality,
    with_retrained,
)
from lightning_unlearn.certificate.report.page import write
from lightning_unlearn.certificate.words.in_notebook import certificate_html
from lightning_unlearn.certificate.words.printed import headline
from lightning_unlearn.guarantee.claims import EXACT, Bound
from lightning_unlearn.plugin.files.checkpoint import certificate_path, secrets
from lightning_unlearn.plugin.files.stale_checkpoints import NOTHING_STALE, Stale
from lightning_unlearn.solvers.base import Solution


@dataclass(frozen=True, kw_only=True, repr=False)
class UnlearningResult:
    """The outcome of one request; the model already has the new weights.

    Printed, it is five lines: the claim, how many samples, what it took, what was
    written, what next. They contain nothing secret.

    Args:
        certificate: What is proved. Safe to publish, except for numbers of a damped
            step that are marked measured or estimated: no guarantee covers those.
        solution: The displacement before noise, and the solver's residual and cost.
            Secret: with it the noise can be subtracted.
        n_forget: Samples forgotten.
        n_retain: Samples retained.
        seconds: Wall time of the request, without writing the checkpoint.
        checkpoint_path: Where the clean checkpoint was written, or None.
        deleted: Older checkpoints that were deleted after it (``delete_stale``).
        residuals: (solver step, residual), the last recomputed from the solution.
            Internal: it depends on the forgotten samples; epsilon does not cover it.
        quality: The metric before and after the request, one line for each set of
            samples. Internal, as `residuals`.
        metric: Which metric that is.
        ledger: The ledger's text after this request, or None without ``ledger=``.
        ledger_path: Its file.
        duplicates: Positions of retained samples that equal a forgotten one, or None
            if they were not looked for. Internal, as `residuals`.
        stale: Known files from before this request, which hold what was
            forgotten. Internal, as `residuals`.
        leaves: What the certificate's commitment is made of. Secret: `receipts` opens
            some.
        answers: How the requests in the file of ``requests=`` were answered, or None.
            Secret: it names requests.
    """

    certificate: Certificate
    solution: Solution
    n_forget: int
    n_retain: int
    seconds: float
    checkpoint_path: Path | None
    deleted: tuple[str, ...] = ()
    residuals: tuple[tuple[float, float], ...] = ()
    quality: tuple[Quality, ...] = ()
    metric: str = "accuracy"
    ledger: str | None = None
    ledger_path: Path | None = None
    duplicates: tuple[int, ...] | None = None
    stale: Stale = NOTHING_STALE
    leaves: tuple[Leaf, ...] = ()
    store: str = ""
    answers: Answers | None = None

    def __str__(self) -> str:
        rows = [f"  {name:<9} {text}" for name, text in self._rows()]
        return "\n".join([printable(headline(self.certificate)), *rows])

    __repr__ = __str__  # what a notebook or a traceback shows must not be secret

    def _repr_html_(self) -> str:
        return box(
            headline(self.certificate),
            table(self._rows()),
            folded("certificate", certificate_html(self.certificate)),
        )

    def _rows(self) -> list[tuple[str, str]]:
        passes = f"{self.solution.matvecs:.3g} passes over the retained samples"
        if self.certificate.bound in EXACT:
            start = "the stages that were kept"
            if self.certificate.bound is Bound.RETRAINED:
                start = "a fresh start"
            passes = f"{self.solution.steps:,} training steps from {start}"
        if self.certificate.bound is Bound.PRIVATE_TRAINING:
            passes = "no weight was changed: the training was private"
        clean, written = self.checkpoint_path, "nothing (save_to= names a checkpoint)"
        then = "trainer.save_checkpoint keeps this model for yourself"
        if clean is not None:
            secret = ", ".join(path.name for path in secrets(clean))
            written = (
                f"{clean}, {certificate_path(clean).name}; for you alone: {secret}"
            )
            then = "result.receipts(...) for the person"
        if self.store:
            written += f"; the row store, as secret as the data: {self.store}"
        rows = []
        if self.answers is not None:
            done = len(self.answers.done)
            refused = len(self.answers.rows) - done
            told = f"{done:,} done, {refused:,} refused: {self.answers.file} says which"
            rows = [("requests", printable(told))]
            then = "each request has a receipt of its own: result.answers, and the file"
        return [
            *rows,
            ("samples", f"{self.n_forget:,} forgotten, {self.n_retain:,} retained"),
            ("took", f"{self.seconds:.2g} s, {passes}"),
            ("wrote", printable(written)),
            ("next", f"print(result.certificate) for what is proved; {then}"),
        ]

    def receipts(self, *positions: int, person: str | None = None) -> str:
        """Receipts for samples of one person: that this certificate speaks of them.

        ``lightning-unlearn verify clean.certificate.json --receipt FILE`` checks them.

        Args:
            positions: Positions of samples that were forgotten.
            person: Instead: all samples of an id that the request named with ``by``.

        Returns:
            One line of JSON per sample, for that person alone.

        Raises:
            CertificateError: If one was not forgotten by this request.
        """
        persons = [] if person is None else [person]
        places = receipts.chosen(self.leaves, persons, positions)
        request_id = self.certificate.request_id
        return "".join(
            receipts.receipt(self.leaves, place, request_id).to_json()
            for place in places
        )

    def report(
        self,
        path: Path | str,
        *,
        retrained: Mapping[str, float] | None = None,
        audit: Mapping[str, object] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a report of this request: one HTML file, printable to PDF.

        It shows what was measured on the forgotten samples, so it is internal and
        says so. ``lightning-unlearn report`` makes the public one from the
        certificate alone.

        Args:
            path: A new file that ends in .html.
            retrained: The metric of a model retrained without the forgotten samples,
                by the names in `quality`.
            audit: What attacks on the model found, by what was tried.
            overwrite: Let it replace an earlier report, and no other file.

        Returns:
            The path.

        Raises:
            SetupError: If the path is taken or has another ending, or jinja2 is
                missing.
            ArgumentError: If `retrained` names what was not measured.
        """
        clean = self.checkpoint_path
        evidence = Evidence(
            residuals=self.residuals,
            quality=with_retrained(self.quality, retrained or {}),
            metric=self.metric,
            audit=tuple(
                (str(tried), number(found) if isinstance(found, float) else str(found))
                for tried, found in (audit or {}).items()
            ),
            ledger=self.ledger,
            duplicates=None if self.duplicates is None else len(self.duplicates),
            seconds=self.seconds,
            deleted=self.deleted,
            ledger_file=None if self.ledger_path is None else self.ledger_path.name,
            certificate_file=None if clean is None else certificate_path(clean).name,
            checkpoint_file=None if clean is None else clean.name,
        )
        return write(path, self.certificate.to_json(), evidence, overwrite)
