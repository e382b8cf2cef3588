"""`LightningCLI` with the subcommands ``unlearn`` and ``preflight``."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.cli import LightningCLI as _LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from lightning_unlearn.errors import SetupError, UnlearningError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.checkpoint import certificate_path
from lightning_unlearn.plugin.preflight import preflight
from lightning_unlearn.plugin.trainer import unlearn
from lightning_unlearn.report.page import check_path

_GROUP = "unlearning"
Forget = str | list[str | int]


class LightningCLI(_LightningCLI):
    """Lightning's, whose Trainer has an `UnlearningCallback` and can unlearn.

    Its options are the group ``unlearning``; a config.yaml written by Lightning's own
    CLI is accepted. A callback of the user's own under ``trainer.callbacks`` takes the
    place of the group's. ``unlearn`` and ``preflight`` write no config.yaml: it would
    say who was forgotten. They end with exit code 0 when they are done, and with 1 and
    one line on standard error when they are refused or fail; ``--debug`` shows the
    traceback.

    Example:
        ``python train.py unlearn --config config.yaml --ckpt_path run.ckpt --forget
        forget.txt --save_to clean.ckpt``
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and ours."""
        ours: dict[str, set[str]] = {name: set() for name in _OURS}
        return {**_LightningCLI.subcommands(), **ours}

    @override
    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_core_arguments_to_parser(parser)
        parser.add_lightning_class_args(UnlearningCallback, _GROUP)

    @override
    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        ours = subcommand in _OURS
        parser = super()._prepare_subcommand_parser(
            _Verbs if ours else klass, subcommand, **kwargs
        )
        if ours:
            parser.add_argument(
                "--debug",
                action="store_true",
                help="Show the traceback of an error, not one line.",
            )
        return parser

    @override
    def _instantiate_trainer(
        self, config: dict[str, Any], callbacks: list[Callback]
    ) -> Trainer:
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        if any(isinstance(c, UnlearningCallback) for c in own):
            group = next(c for c in callbacks if isinstance(c, UnlearningCallback))
            self._check_group(group)
            callbacks = [c for c in callbacks if c is not group]
        saving = self.save_config_callback
        if self.subcommand in _OURS:
            self.save_config_callback = None
        try:
            return super()._instantiate_trainer(config, callbacks)
        finally:
            self.save_config_callback = saving

    def _parse_ckpt_path(self) -> None:
        """Lightning's reading of the checkpoint's hyper-parameters (from 2.6)."""
        parse = getattr(super(), "_parse_ckpt_path", None)
        if parse is not None:
            with self._failing_in_one_line():
                parse()

    @override
    def instantiate_classes(self) -> None:
        with self._failing_in_one_line():
            super().instantiate_classes()

    def _failing_in_one_line(self) -> AbstractContextManager[None]:
        """As `_one_line`, for a subcommand of ours."""
        name = self.config.get("subcommand")
        if name not in _OURS:
            return nullcontext()
        return _one_line(bool(self.config[name].get("debug")))

    def _check_group(self, group: UnlearningCallback) -> None:
        if group.options != UnlearningCallback().options:
            raise SetupError(
                f"expected the options of one UnlearningCallback, got the group "
                f"{_GROUP} and another under trainer.callbacks: set them in one place"
            )

    def unlearn(
        self,
        model: LightningModule,
        save_to: str,
        report: str | None = None,
        **options: Any,
    ) -> None:
        """Run the subcommand."""
        with self._failing_in_one_line():
            if report is not None:
                check_path(report)  # before the work, not after it
            result = unlearn(
                self.trainer,
                model=model,
                save_to=save_to,
                evaluate=report is not None,
                **options,
            )
            written = [save_to, str(certificate_path(Path(save_to)))]
            if report is not None and self.trainer.is_global_zero:
                written.append(str(result.report(report)))
            _say(result.certificate)  # last: standard output may be closed
            _say(f"\nwrote {', '.join(written)}")
            for path in result.deleted:
                _say(f"deleted {path}")

    def preflight(self, model: LightningModule, **options: Any) -> None:
        """Run the subcommand."""
        with self._failing_in_one_line():
            _say(preflight(self.trainer, model=model, **options))


class _Verbs:
    """The subcommands as a command line can give them."""

    def unlearn(
        self,
        forget: Forget,
        save_to: str,
        by: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        delete_stale: bool = False,
        resume_from: str | None = None,
        find_duplicates: bool = False,
        report: str | None = None,
    ) -> None:
        """Remove the influence of some training samples from the model.

        Args:
            forget: File of positions in the training dataset (.txt, .json, .npy or
                .csv), or a list of them: '[3, 14]'. With --by, of ids: '[u3, u7]'.
            save_to: New file for the clean checkpoint; the certificate is written
                beside it, with the suffix .certificate.json.
            by: Attribute of the dataset with one id for each sample, and column or key
                of the file: what --forget lists in place of positions.
            ckpt_path: Checkpoint of the trained model.
            weights_only: Passed to torch.load for the checkpoint.
            delete_stale: Delete the older checkpoints of this training afterwards.
            resume_from: The callback's state_file of a request that was stopped.
            find_duplicates: Report exact copies of forgotten samples that stay.
            report: New .html file for an internal report, with accuracy before and
                after; lightning-unlearn report makes a public one.
        """

    def preflight(
        self,
        forget: Forget,
        by: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        find_duplicates: bool = False,
    ) -> None:
        """Look before unlearning: grade, noise, accuracy, time. Changes nothing.

        Args:
            forget: As for unlearn.
            by: As for unlearn.
            ckpt_path: As for unlearn.
            weights_only: As for unlearn.
            find_duplicates: As for unlearn.
        """


_OURS = ("unlearn", "preflight")


@rank_zero_only
def _say(text: object) -> None:
    print(text)


@contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    """One line on standard error and exit code 1 in place of a traceback."""
    try:
        yield
    except Exception as error:
        if debug:
            raise
        _complain(error)
        sys.exit(1)


@rank_zero_only
def _complain(error: Exception) -> None:
    text = " ".join(str(error).split())
    if not isinstance(error, UnlearningError):
        text = f"{type(error).__name__}: {text} (--debug shows the traceback)"
    print(f"error: {text}", file=sys.stderr)
