"""Never again: data are held to the exclusion list before anything is trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_unlearn._base.text import positions_text
from lightning_unlearn.certificate.exclusions import Excluded, Exclusions
from lightning_unlearn.certificate.receipts import Leaf
from lightning_unlearn.errors import DataError, ForgetSetError
from lightning_unlearn.plugin.data import forget_set, training_data
from lightning_unlearn.plugin.data.drawn import drawn_positions
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    Trainer,
    TrainerFn,
    isolate_rng,
)
from lightning_unlearn.plugin.options import Options
from lightning_unlearn.plugin.run import progress, strategies

_NOBODY: Callable[[int], object] = lambda more: None  # noqa: E731


def excluded(
    dataset: Any,
    exclusions: str | Path,
    *,
    key: str | Path,
    by: str | None = None,
) -> list[int]:
    """Positions of samples that an exclusion list names, to leave them out.

    ``Subset(dataset, [i for i in range(len(dataset)) if i not in found])`` has the
    others. Every sample is read once. A sample is recognised by its id, with `by`, or
    by its whole content, to the byte; so not after another transform, nor if it is
    random.

    Args:
        dataset: A map-style dataset.
        exclusions: The list: what ``UnlearningCallback(exclusions=)`` writes.
        key: File of its key.
        by: Attribute or column of the dataset that holds each sample's id, or None.

    Returns:
        Sorted positions.

    Raises:
        SetupError: If list or key is missing.
        DataError: If the list is damaged, or of another key.
        ForgetSetError: If the dataset has no such ids.
    """
    listed = Exclusions.read(Path(exclusions), Path(key))
    positions = list(range(len(dataset)))
    return _found(dataset, positions, listed, by, "the data")


class Guard:
    """Holds the data of one training to the list.

    Args:
        listed: The list.
        options: Of the callback.
    """

    def __init__(self, listed: Exclusions, options: Options) -> None:
        self.listed, self.by = listed, options.exclude_by
        self.file, self._checked = options.exclusions, list[Any]()

    @classmethod
    def of(cls, options: Options) -> "Guard | None":
        """One, if there is a list.

        Raises:
            UnlearningError: If list or key cannot be read.
        """
        paths = options.exclusion_paths
        return None if paths is None else cls(Exclusions.read(*paths), options)

    def check_training(
        self, trainer: Trainer, module: LightningModule, loader: DataLoader
    ) -> None:
        """Refuse training data that hold what was forgotten.

        Args:
            trainer: In ``on_train_start``.
            module: Its module.
            loader: The training loader.

        Raises:
            DataError: If they do, with the positions.
        """
        processes = strategies.processes_of(trainer)
        run = trainer, module, processes
        with progress.shown(*run, what="Exclusions", logs=False) as display:
            self._check(trainer, loader, self.by, "the training data", display.reading)
            display.end()

    def check_validation(self, trainer: Trainer) -> None:
        """Refuse validation data that hold what was forgotten, once a loader.

        Args:
            trainer: In ``on_validation_start``.

        Raises:
            DataError: If they do, with the positions.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loaders: Any = trainer.val_dataloaders
        several = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        if isinstance(loaders, dict):
            several = list(loaders.values())
        for loader in several:
            if any(loader is known for known in self._checked):
                continue
            self._checked.append(loader)
            what, by = "the validation data", self.by
            try:
                dataset: Any = training_data.training_loader(loader).dataset
                if by is not None:
                    forget_set.people(dataset, by)
            except DataError:
                rank_zero_warn(
                    "validation data without positions (a stream, or ready-made "
                    "batches) are not checked against the exclusion list: who is in "
                    "them is not known"
                )
                continue
            except ForgetSetError:
                by = None  # `_found` says that ids are not compared
            self._check(trainer, loader, by, what)

    def _check(
        self,
        trainer: Trainer,
        loader: DataLoader,
        by: str | None,
        what: str,
        reading: Callable[[int], Callable[[int], object]] = lambda total: _NOBODY,
    ) -> None:
        processes, dataset = strategies.processes_of(trainer), loader.dataset
        with processes.together():
            mine = processes.share(_drawn(loader))
            own = _found(dataset, mine, self.listed, by, what, reading(len(mine)))
        found = sorted({i for part in processes.gather(own) for i in part})
        if found:
            given = f", by={by!r}" if by else ""
            raise DataError(
                f"expected {what} without anybody who was forgotten, got {len(found)} "
                f"of {len(_drawn(loader))} samples that the exclusion list "
                f"{self.file} names, at {positions_text(found)}: take "
                "torch.utils.data.Subset(dataset, the others); lightning_unlearn."
                f"excluded(dataset, exclusions, key=...{given}) returns all such "
                "positions"
            )


def line_of(
    options: Options, leaves: Sequence[Leaf], request_id: str
) -> tuple[Path, Excluded] | None:
    """The list and what a request adds to it; None without a list.

    Args:
        options: Of the callback.
        leaves: What its certificate commits to.
        request_id: Of its certificate.

    Raises:
        UnlearningError: If list or key cannot be read.
    """
    paths = options.exclusion_paths
    if paths is None:
        return None
    unknown = sum(leaf.person is None and leaf.sample is None for leaf in leaves)
    if unknown:
        rank_zero_warn(
            f"{unknown} of the {len(leaves)} forgotten samples cannot be recognised "
            "by the exclusion list: they differ between two reads, or hold what cannot "
            "be compared; name people with by= instead of positions"
        )
    return paths[0], Exclusions.read(*paths).key.line(leaves, request_id)


def _drawn(loader: DataLoader) -> list[int]:
    """Positions that a loader can draw: all of them, where that cannot be told."""
    dataset: Any = loader.dataset
    try:
        found = drawn_positions(loader)
    except DataError:
        found = None
    return list(range(len(dataset))) if found is None else found


def _found(
    dataset: Any,
    positions: list[int],
    listed: Exclusions,
    by: str | None,
    what: str,
    count: Callable[[int], object] = _NOBODY,
) -> list[int]:
    """Those of some positions that the list names."""
    found = set[int]()
    if listed.people and by is None:
        rank_zero_warn(
            f"the exclusion list names {len(listed.people)} people, and {what} are not "
            "compared with their ids: name the attribute that holds them"
            + (" in exclude_by=" if what != "the data" else " in by=")
        )
    elif by is not None:
        ids = forget_set.people(dataset, by)
        named = {
            name for name in {ids[i] for i in positions} if listed.has_person(name)
        }
        found = {i for i in positions if ids[i] in named}
    if not (listed.samples and positions):
        return sorted(found)
    with isolate_rng():  # a training goes on as if nobody had looked
        if training_data.fingerprint(dataset, "") is None:
            rank_zero_warn(
                f"{what} differ between two reads, or hold what cannot be compared: "
                "only their ids are checked against the exclusion list"
            )
            return sorted(found)
        unknown = 0
        for i in positions:
            digest = training_data.sample_digest(dataset[i])
            unknown += digest is None
            if digest is not None and listed.has_sample(digest):
                found.add(i)
            count(1)
    if unknown:
        rank_zero_warn(
            f"{unknown} of {len(positions)} samples of {what} hold what cannot be "
            "compared: their contents are not checked against the exclusion list"
        )
    return sorted(found)
