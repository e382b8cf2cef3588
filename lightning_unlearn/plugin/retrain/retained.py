"""The retained samples as a dataset of their own: it has no others to give."""

import operator
from functools import partial
from typing import Any, cast

from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.data.drawn import drawn_positions
from lightning_unlearn.plugin.data.exact_batches import reading_of
from lightning_unlearn.plugin.data.forget_set import people
from lightning_unlearn.plugin.lightning import LightningDataModule, LightningModule


class _NotRetainedError(DataError, IndexError):
    """Ends a loop over the samples, as of any sequence."""


class Retained(Dataset):
    """The samples of a dataset that are retained, numbered anew from 0.

    Args:
        dataset: The training dataset, forgotten samples included.
        positions: Of the retained samples in it.
        token: Name of the retraining it is for.
    """

    def __init__(self, dataset: Any, positions: list[int], token: str) -> None:
        self._dataset, self._positions, self.token = dataset, positions, token
        self._known: str | None = training_data.fingerprint(dataset, token)
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._several

    @property
    def whole(self) -> Any:
        """The training dataset that these samples are read from."""
        return self._dataset

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._position(index)]

    def _several(self, indices: list[int]) -> Any:
        return self._dataset.__getitems__([self._position(i) for i in indices])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"expected the retained samples to be read one by one, got a look at "
            f"{name!r}: this is a dataset of its own, which holds nothing of the whole "
            "one but its samples: [data[i] for i in range(len(data))] has them all"
        )

    def ids_of_samples(self, by: str) -> list[str]:
        """The id of each of these samples, by an attribute of the training dataset."""
        known = people(self._dataset, by)
        return [known[i] for i in self._positions]

    def _position(self, index: int) -> int:
        """In the training dataset.

        Raises:
            DataError: If there is no such sample: nothing but what is retained is
                given away, whatever asks for it.
        """
        at = operator.index(index)
        if not 0 <= at < len(self):
            raise _NotRetainedError(
                f"expected a sample from 0 to {len(self) - 1} of those that are "
                f"retained, got {at}: the retraining draws from the dataset that it "
                "is given, whose positions begin at 0 again"
            )
        return self._positions[at]

    def load_in(self, owner: LightningModule | LightningDataModule) -> None:
        """Have a new module or DataModule load these samples and no others.

        Args:
            owner: Whose ``train_dataloader`` loads the whole training dataset.
        """
        # A partial of a function: it travels to spawned processes, and Lightning sees
        # that the hook is there.
        cast("Any", owner).train_dataloader = partial(_retained, owner, self)

    def loader_like(self, loader: DataLoader) -> DataLoader:
        """A loader over these samples that draws as one of all of them does.

        Args:
            loader: Over the whole training dataset, which may be another object.

        Raises:
            DataError: If its samples are others, or its sampler is not one that is
                known by class.
        """
        dataset: Any = loader.dataset
        same = len(dataset) == len(self._dataset)
        if not same or training_data.fingerprint(dataset, self.token) != self._known:
            raise DataError(
                "expected the retraining to load the training data of the request, got "
                "other samples, or in another order: if random_split makes them, it "
                "splits anew every time; split with "
                "generator=torch.Generator().manual_seed(0)"
            )
        drawn_positions(loader)  # or it is refused by name
        place = {position: i for i, position in enumerate(self._positions)}
        kept = Retained(dataset, self._positions, self.token)
        return DataLoader(
            kept,
            batch_size=loader.batch_size,
            **_order(loader.sampler, place),
            **reading_of(loader),
            drop_last=loader.drop_last,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )


def _retained(owner: Any, retained: Retained) -> DataLoader:
    loader = training_data.training_loader(type(owner).train_dataloader(owner))
    return retained.loader_like(loader)


def _order(sampler: Any, place: dict[int, int]) -> dict[str, Any]:
    """How `DataLoader` is to draw what is left as `sampler` drew all of it.

    Args:
        sampler: Of the whole dataset.
        place: Position in it -> position among the retained.
    """
    if type(sampler) is SequentialSampler:
        return {"shuffle": False}
    if type(sampler) is SubsetRandomSampler:
        left = [place[int(i)] for i in sampler.indices if int(i) in place]
        return {"sampler": SubsetRandomSampler(left)}
    if type(sampler) is RandomSampler and not sampler.replacement:
        if sampler._num_samples is None:
            return {"shuffle": True}
    elif type(sampler) is WeightedRandomSampler and sampler.replacement:
        weights = sampler.weights.tolist()
        left = [weights[position] for position in place]
        n = round(sampler.num_samples * len(left) / len(weights))
        return {"sampler": WeightedRandomSampler(left, n)}
    raise DataError(
        "expected a training loader with shuffle=True or False, a SubsetRandomSampler, "
        "or a WeightedRandomSampler with replacement, to be made again over the "
        f"retained samples, got {type(sampler).__name__}: pass retrain=make_training "
        "to the UnlearningCallback, which builds its own loader over what it is given"
    )
