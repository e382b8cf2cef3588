"""`LightningCLI` with the subcommands ``unlearn`` and ``preflight``."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from lightning_unlearn._base.files import close_output
from lightning_unlearn._base.text import one_line, printable
from lightning_unlearn.certificate.inbox.answers import Answers
from lightning_unlearn.certificate.report.page import check_path
from lightning_unlearn.errors import ForgetSetError, SetupError, UnlearningError
from lightning_unlearn.plugin.callback import UnlearningCallback
from lightning_unlearn.plugin.files import checkpoint
from lightning_unlearn.plugin.lightning import (
    ArgsType,
    Callback,
    LightningArgumentParser,
    LightningCLI as _LightningCLI,
    LightningModule,
    Trainer,
    check_package,
)
from lightning_unlearn.plugin.request.request import Request, file_of_requests
from lightning_unlearn.plugin.request.stage import callback_of
from lightning_unlearn.plugin.retrain.retained import Retained
from lightning_unlearn.plugin.verbs.preflight import preflight
from lightning_unlearn.plugin.verbs.unlearn import unlearn

_GROUP = "unlearning"
_Options = dict[str, Any]
_NUMBER = re.compile("-?(0|[1-9][0-9]{0,17})")


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
        check_package(self._model_class, self._datamodule_class, self.trainer_class)
        super().add_core_arguments_to_parser(parser)
        parser.add_lightning_class_args(UnlearningCallback, _GROUP)

    @override
    def setup_parser(
        self, add_subcommands: bool, main_kwargs: _Options, subparser_kwargs: _Options
    ) -> None:
        """Lightning's; one of ours gets its options alone, which saves half a second.

        A file of defaults may name options of others: then all get theirs.
        """
        first = sys.argv[1] if len(sys.argv) > 1 else None
        alone = first in _OURS and "default_config_files" not in main_kwargs
        self._alone = first if alone else None
        self._set_up = add_subcommands, main_kwargs, subparser_kwargs
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)

    @override
    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        if self._alone not in (None, subcommand):
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
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
        own = _as_list(config.get("callbacks"))
        own += _as_list(self.trainer_defaults.get("callbacks"))
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

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        if args is not None and self._alone is not None:  # not of the command line
            self._alone = None
            super().setup_parser(*self._set_up)
            parser = self.parser
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list):
            for once in ("--forget", "--requests"):
                times = sum(str(a).split("=")[0] == once for a in given)
                if times > 1:
                    parser.error(
                        f"expected {once} once, got it {times} times: only the last "
                        "would be forgotten; put all in one file or list"
                    )
        super().parse_arguments(parser, args)

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
        forget: str | None = None,
        requests: str | None = None,
        report: str | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        """Run the subcommand."""
        with self._failing_in_one_line():
            asked: dict[str, Any] = {"requests": requests}
            if forget is not None:
                asked["forget"] = _listed(forget)
            if report is not None and not self._is_idle(model, forget, requests):
                # Before the work, not after it.
                _check_report(report, save_to, overwrite)
            if options.get("how") == "retrain":
                self._offer_training()
            result = unlearn(
                self.trainer,
                model=model,
                **asked,
                save_to=save_to,
                overwrite=overwrite,
                evaluate=report is not None,
                **options,
            )
            if result is None:
                _say(f"nothing to do: no request in {requests} is pending")
                return
            clean = Path(save_to)
            written = [save_to, str(checkpoint.certificate_path(clean))]
            problem = None
            if report is not None and self.trainer.is_global_zero:
                try:
                    made = result.report(report, overwrite=overwrite)
                    written.append(str(made))
                except Exception as error:  # the model has the new weights all the same
                    problem = error
            secret = ", ".join(map(str, checkpoint.secrets(clean)))
            told = [] if result.answers is None else _answered(result.answers)
            told += [f"wrote {', '.join(written)}"]
            told += [f"wrote {secret}: as secret as the data"]
            if result.store:
                told += [f"wrote the row store, as secret as the data: {result.store}"]
            told += [f"deleted {path}" for path in result.deleted]
            told += [
                f"older checkpoint, holds what was forgotten: {path}"
                for path in result.stale.checkpoints
                if path not in result.deleted
            ]
            _say("\n".join([str(result.certificate), "", *told]))
            if problem is not None:
                raise SetupError(
                    f"the request is done and {save_to} is written, but its report is "
                    f"not: {problem}"
                ) from problem

    def _is_idle(
        self, model: LightningModule, forget: str | None, requests: str | None
    ) -> bool:
        """Whether it is known that nothing is to be done."""
        asked = Request(requests=file_of_requests(forget, requests))
        return asked.nothing_pending(callback_of(self.trainer, model).options)

    def _offer_training(self) -> None:
        """Let the request train again what the config describes."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, UnlearningCallback):
                own = callback.options.retrain or self._training_anew
                callback.options = replace(callback.options, retrain=own)

    def _training_anew(self, data: Retained) -> tuple[Trainer, LightningModule, Any]:
        again = copy(self)
        _LightningCLI.instantiate_classes(again)
        data.load_in(again.datamodule or again.model)
        return again.trainer, again.model, again.datamodule

    def preflight(
        self, model: LightningModule, forget: str | None = None, **options: Any
    ) -> None:
        """Run the subcommand."""
        with self._failing_in_one_line():
            listed = None if forget is None else _listed(forget)
            _say(preflight(self.trainer, model=model, forget=listed, **options))


class _Verbs:
    """The subcommands as a command line can give them."""

    def unlearn(
        self,
        save_to: str,
        forget: str | None = None,
        requests: str | None = None,
        by: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        delete_stale: bool = False,
        resume_from: str | None = None,
        find_duplicates: bool = False,
        report: str | None = None,
        overwrite: bool = False,
        how: Literal["auto", "newton", "retrain"] = "auto",
    ) -> None:
        """Remove the influence of some training samples from the model.

        Args:
            save_to: New file for the clean checkpoint; the certificate is written
                beside it, with the suffix .certificate.json.
            forget: File of positions in the training dataset (.txt, .json, .npy or
                .csv), or a list of them: '[3, 14]'. With --by, of ids: '[u3, u7]',
                or '["u3"]' if they hold commas or quotes.
            requests: In place of --forget: a .csv file of requests (columns request,
                person or positions, received, due). All pending ones go into one
                release; what became of each is written into the file.
            by: Attribute of the dataset with one id for each sample, and column or key
                of the file: what --forget lists in place of positions, and whom
                --requests names.
            ckpt_path: Checkpoint of the trained model.
            weights_only: Passed to torch.load for the checkpoint.
            delete_stale: Delete the older checkpoints of this training afterwards.
            resume_from: The callback's state_file of a request that was stopped; of a
                retraining, a checkpoint that it wrote.
            find_duplicates: Report exact copies of forgotten samples that stay.
            report: New .html file for an internal report, with accuracy before and
                after; lightning-unlearn report makes a public one.
            overwrite: Replace the clean checkpoint that an earlier request of this
                model wrote, with what belongs to it, and an earlier report.
            how: newton, a step from the model as it is (auto is the same); or retrain:
                what the config describes is trained anew on the retained samples.
        """

    def preflight(
        self,
        forget: str | None = None,
        requests: str | None = None,
        by: str | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        find_duplicates: bool = False,
    ) -> None:
        """Look before unlearning: grade, noise, accuracy, time. Changes nothing.

        Args:
            forget: As for unlearn.
            requests: As for unlearn; nothing is written into it.
            by: As for unlearn.
            ckpt_path: As for unlearn.
            weights_only: As for unlearn.
            find_duplicates: As for unlearn.
        """


_OURS = ("unlearn", "preflight")


def _as_list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def _listed(forget: str) -> str | list[Any]:
    """A path as it is; what is in brackets as a list.

    Not read as YAML, for which 010 is 8: such a number would be somebody else.

    Raises:
        ForgetSetError: If the brackets hold something else than a list.
    """
    text = forget.strip()
    if not text.startswith("["):
        return forget
    try:
        return json.loads(text)
    except ValueError:
        parts = [part.strip() for part in text[1:-1].split(",")]
    if text[-1] != "]" or not all(parts) or set("[]{}\"'") & set(text[1:-1]):
        raise ForgetSetError(
            "expected a list such as '[3, 14]' or '[\"u3\", \"u7\"]' for --forget, "
            f"got {forget:.60}: mind the quotes of the shell"
        )
    return [int(part) if _NUMBER.fullmatch(part) else part for part in parts]


def _answered(answers: Answers) -> list[str]:
    """What became of the requests in a file."""
    told = [f"release {answers.release} in {answers.file}:"]
    for row in answers.rows:
        became = f"refused: {row.why}" if row.why else answers.receipt_path(row)
        told.append(printable(f"  {row.request}  {became}"))
    clean = checkpoint.certificate_path(Path(answers.checkpoint)).name
    return [
        *told,
        "each of these receipts is for that person alone: lightning-unlearn verify "
        f"{clean} --receipt FILE",
    ]


def _check_report(report: str, save_to: str, overwrite: bool) -> None:
    path = check_path(report, overwrite).resolve()
    clean = Path(save_to)
    if path in [taken.resolve() for taken in checkpoint.targets(clean)]:
        raise SetupError(
            f"expected a file of its own for the report, got {report}, which is the "
            "checkpoint or belongs to it: name another"
        )


@rank_zero_only
def _say(text: object) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # nobody reads on; what was asked for is done
        close_output()


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
    text = one_line(error, (UnlearningError,), "--debug shows the traceback")
    print(f"error: {text}", file=sys.stderr)
