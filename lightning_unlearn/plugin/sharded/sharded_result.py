"""What a request to an ensemble of shards returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_unlearn._base.notebook import box, table
from lightning_unlearn._base.text import printable, some
from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.certificate.words.printed import taking
from lightning_unlearn.guarantee.claims import Grade, lowest
from lightning_unlearn.plugin.request.result import UnlearningResult

#: What the joint claim does not reach, though that of each retrained shard does.
ADAPTIVE = (
    "requests that were chosen by what an earlier model of this ensemble shows: the "
    "shards that are not touched are not trained again"
)


def one_of(shards: int) -> str:
    """What the certificate of one shard must say of the others.

    Args:
        shards: S.
    """
    return (
        f"the other models of an ensemble of {shards} shards: this certificate speaks "
        "of one; all together are exact for a request that does not depend on earlier "
        "models, and not for one that was chosen by what they show"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class ShardedResult:
    """The outcome of one request to a `ShardedClassifier`.

    Args:
        results: Of each shard that was retrained, by its number.
        n_shards: S.
        failed: The shard whose retraining failed, or None.
        waiting: Shards that still hold some of the samples, the failed one among them.
        seconds: Wall time of the whole request.
    """

    results: Mapping[int, UnlearningResult]
    n_shards: int
    failed: int | None = None
    waiting: tuple[int, ...] = ()
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every sample that was asked for is forgotten."""
        return not self.waiting

    @property
    def touched(self) -> tuple[int, ...]:
        """Shards that were retrained."""
        return tuple(self.results)

    @property
    def certificates(self) -> dict[int, Certificate]:
        """Of each shard that was retrained: it speaks of that shard's samples."""
        return {shard: one.certificate for shard, one in self.results.items()}

    @property
    def n_forget(self) -> int:
        """Samples forgotten by this request."""
        return sum(one.n_forget for one in self.results.values())

    @property
    def grade(self) -> Grade:
        """The lowest of those of the shards; ``none`` while one still holds samples."""
        if not self.complete:
            return Grade.NONE
        return lowest(c.grade for c in self.certificates.values())

    @property
    def epsilon(self) -> float | None:
        """Of the whole ensemble: 0, or None where its grade is ``none``."""
        return None if self.grade is Grade.NONE else 0.0

    @property
    def delta(self) -> float | None:
        """As `epsilon`."""
        return self.epsilon

    def __str__(self) -> str:
        rows = [f"  {name:<11} {text}" for name, text in self._rows()]
        return "\n".join([printable(self._headline()), *rows])

    __repr__ = __str__  # what a notebook or a traceback shows must not be secret

    def _repr_html_(self) -> str:
        return box(self._headline(), table(self._rows()))

    def _headline(self) -> str:
        n, S = self.n_forget, self.n_shards
        if not self.complete:
            return (
                f"NOT DONE: shards {some(self.waiting)} of {S} still hold samples that "
                f"were to be forgotten; shard {self.failed} failed. Ask again"
            )
        certificates = [*self.certificates.values()]
        samples = f"these {n:,} samples" if n > 1 else "this sample"
        if self.grade is not Grade.EXACT:
            which = {j: c.grade for j, c in self.certificates.items()}
            less = some([j for j, grade in which.items() if grade is not Grade.EXACT])
            return (
                f"{self.grade.name}: {len(certificates)} of {S} shards retrained "
                f"without {samples}, but not all exactly: see the certificate of shard "
                f"{less}"
            )
        return (
            f"EXACT: {len(certificates)} of {S} shards retrained by this tool without "
            f"{samples}, which the others never saw: epsilon = 0, delta = 0, for a "
            "request that does not depend on earlier models, "
            f"{taking(certificates[0])}"
        )

    def _rows(self) -> list[tuple[str, str]]:
        rows = []
        for shard, one in self.results.items():
            counts = f"{one.n_forget:,} forgotten, {one.n_retain:,} retained"
            wrote = "" if one.checkpoint_path is None else f", {one.checkpoint_path}"
            text = f"{counts}, {one.seconds:.2g} s{wrote}"
            rows.append((f"shard {shard}", printable(text)))
        return [*rows, ("not covered", ADAPTIVE)]
