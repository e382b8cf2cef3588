"""The forget set as people have it -> positions in the training dataset."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
)

from lightning_unlearn._base.text import some
from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.plugin.data.forget_files import (
    Value,
    integers,
    read_indices,
    read_values,
    values,
)
from lightning_unlearn.plugin.data.hub_datasets import column, is_hub, picked_from
from lightning_unlearn.plugin.data.subsets import (
    flatten,
    from_loader,
    from_subset,
    through,
)

Forget = Any  # positions, ids, a file of either, a Subset, a loader, or a predicate
Hook = Callable[[list[Value]], Any]


def resolve(
    forget: Forget,
    dataset: Any,
    removed: Sequence[int],
    by: str | None = None,
    hook: Hook | None = None,
) -> list[int]:
    """Positions to forget, sorted, each in the dataset and still in the model.

    Args:
        forget: Indices (int, list, tuple, set, range, array, tensor), a mask with one
            True or False for every sample, the path of a .txt, .json, .npy or .csv
            file of either, a `Subset` of the training data (of a `datasets.Dataset`
            what ``select`` or ``filter`` gave), a DataLoader over one, or a predicate
            that is asked for every sample. With `by` or `hook`, a list or a file of
            ids.
        dataset: The training dataset.
        removed: Positions earlier requests have removed.
        by: Attribute or column of the dataset that holds each sample's id; column of a
            file.
        hook: Ids -> positions, the user's own ``forget_indices``.

    Returns:
        Sorted positions.

    Raises:
        ForgetSetError: If the set is empty, everything, repeated, out of range,
            all forgotten already, names somebody unknown, or is not of the training
            data. What of it is forgotten already is left out, with a warning.
    """
    kinds = (Dataset, DataLoader)
    listed = not (isinstance(forget, kinds) or is_hub(forget) or callable(forget))
    if by is not None and not listed:
        raise ForgetSetError(
            f"expected a list or a file of ids with by={by!r}, got "
            f"{type(forget).__name__}, which says by itself what to forget: leave out "
            "by="
        )
    if listed and (by is not None or hook is not None):
        named = _named(forget, by)
        if hook:
            found = by_hook(named, hook, len(dataset))
        else:
            found = _by_attribute(named, dataset, by, removed)
        chosen = _checked(_still_in(found, removed), len(dataset), removed)
        return _with_copies(chosen, dataset, removed)
    if isinstance(forget, DataLoader):
        forget = from_loader(forget, dataset)
    if is_hub(forget):
        indices = picked_from(forget, dataset)
    elif isinstance(forget, Subset):
        indices = from_subset(forget, dataset)
    elif isinstance(forget, Dataset):
        raise ForgetSetError(
            f"expected a Subset of the training dataset, got {type(forget).__name__}: "
            "use torch.utils.data.Subset(train_dataset, indices)"
        )
    elif isinstance(forget, (str, Path)):
        indices = read_indices(Path(forget), len(dataset))
    elif callable(forget):
        indices = _by_predicate(forget, dataset, removed)
    else:
        indices = integers(forget, "the forget set", len(dataset))
    chosen = _checked(indices, len(dataset), removed)
    return _with_copies(chosen, dataset, removed)


def trained_on(
    chosen: list[int], drawn: list[int], removed: Sequence[int], by_id: bool
) -> list[int]:
    """Those of the chosen positions that the training could draw.

    Args:
        chosen: Of `resolve`.
        drawn: Positions that the training could draw.
        removed: Positions earlier requests have removed.
        by_id: Whether people were named, and not positions: what the training never
            drew of theirs (a validation sample) is left out, with a warning.

    Raises:
        ForgetSetError: If a position, or all of a person's, was never drawn, or
            nothing would be left.
    """
    known = set(drawn)
    never = [position for position in chosen if position not in known]
    found = [position for position in chosen if position in known]
    if never and not (by_id and found):
        raise ForgetSetError(
            "expected samples that the model was trained on, got "
            f"{some(never)}, which the training's sampler never draws (validation "
            "samples?): there is nothing of them to forget; leave them out"
        )
    if never:
        rank_zero_warn(
            f"{len(never)} of the {len(chosen)} samples that are named were never "
            "drawn in training (validation samples?): the request is for the others"
        )
    if not known - {*found, *removed}:
        raise ForgetSetError(
            "expected at least one sample to retain, got a request for all "
            f"{len(found)} that were trained on: to forget everything, delete the model"
        )
    return found


def _named(forget: Any, by: str | None) -> list[Value]:
    if isinstance(forget, (str, Path)):
        return read_values(Path(forget), by)
    return values(forget, "the forget set")


def _still_in(found: list[int], removed: Sequence[int]) -> list[int]:
    """What an id stands for, less what went with an earlier request."""
    left = sorted({*found} - {*removed})
    return left or sorted({*found})  # all gone: `_checked` says so


def by_hook(named: list[Value], hook: Hook, n: int) -> list[int]:
    """What a user's own hook makes of ids.

    Args:
        named: The ids.
        hook: The user's ``forget_indices``.
        n: Length of the dataset.

    Raises:
        ForgetSetError: If it fails, or returns no positions.
    """
    try:
        found = hook(named)
    except Exception as problem:  # the user's own code
        raise ForgetSetError(
            f"expected forget_indices(request) to return positions, got "
            f"{type(problem).__name__}: {problem!s:.200}"
        ) from problem
    return integers(found, "what forget_indices(request) returned", n)


def _by_attribute(
    named: list[Value], dataset: Any, by: str | None, removed: Sequence[int]
) -> list[int]:
    assert by is not None  # or there is a hook
    places, kinds = _places_and_kinds(dataset, by)
    number = next((v for v in named if isinstance(v, int)), None)
    if number is not None and any(isinstance(v, str) for v in kinds.values()):
        raise ForgetSetError(
            f"expected text, as {by!r} holds, got the number {number}: quote it (007 "
            "without quotes is 7, which may be somebody else)"
        )
    if unknown := sorted({str(v) for v in named} - set(places)):
        raise ForgetSetError(
            f"expected ids that occur in {by!r} of the training dataset, got "
            f"{some([repr(u)[:60] for u in unknown])}: they were not trained on, or "
            "are written differently (case and spaces count)"
        )
    warn_of_twins({str(value) for value in named}, places)
    gone = {*removed}
    forgotten = [v for v in named if gone.issuperset(places[str(v)])]
    if forgotten and len(forgotten) < len(named):
        _say_forgotten([repr(str(v))[:60] for v in forgotten])
    return [i for value in named for i in places[str(value)]]


def places_of(dataset: Any, by: str) -> dict[str, list[int]]:
    """Positions of the samples of every id, as text.

    Args:
        dataset: The training dataset.
        by: Attribute or column that holds the ids.

    Raises:
        ForgetSetError: If it has none such, or two that are one text.
    """
    return _places_and_kinds(dataset, by)[0]


def _places_and_kinds(
    dataset: Any, by: str
) -> tuple[dict[str, list[int]], dict[str, Value]]:
    places: dict[str, list[int]] = {}
    kinds: dict[str, Value] = {}
    for position, value in enumerate(_ids_of(dataset, by)):
        # A file knows text only: 7 and "7" are one id, and must not be two.
        text = str(value)
        places.setdefault(text, []).append(position)
        if kinds.setdefault(text, value) != value:
            raise ForgetSetError(
                f"expected ids that differ as text in {by!r}, got {value!r:.60} twice, "
                "as a number and as text: use one of them"
            )
    return places, kinds


def _say_forgotten(names: Sequence[object]) -> None:
    rank_zero_warn(
        f"an earlier request has already removed {some(names)}: this one is for the "
        "others"
    )


def warn_of_twins(wanted: set[str], known: Iterable[str]) -> None:
    """Ids that a person would read as one that is asked for, and that stay."""

    def read(text: str) -> str:
        return "".join(unicodedata.normalize("NFKC", text).casefold().split())

    meant = {read(text) for text in wanted}
    twins = [text for text in known if text not in wanted and read(text) in meant]
    if twins:
        rank_zero_warn(
            "ids that differ from those asked for only in case, spaces or the form of "
            f"letters stay in the model: {some([repr(t)[:60] for t in twins])}; ask "
            "for them too if they are the same people"
        )


def people(dataset: Any, by: str) -> list[str]:
    """Each sample's id as text.

    Args:
        dataset: The training dataset.
        by: Attribute that holds the ids.

    Raises:
        ForgetSetError: If it has none such.
    """
    return [str(value) for value in _ids_of(dataset, by)]


def _ids_of(dataset: Any, by: str) -> list[Value]:
    """Each sample's id: of the dataset, or of the one its Subsets pick from."""
    level: Any = dataset
    positions = list(range(len(level)))
    while (labels := _held(level, by)) is None and isinstance(level, Subset):
        positions = through(level, positions)
        level = level.dataset
    n = len(level)
    if labels is not None and hasattr(labels, "tolist"):  # tensors, arrays, pandas
        labels = labels.tolist()
    if not (isinstance(labels, (list, tuple)) and len(labels) == n):
        raise ForgetSetError(
            f"expected a column or attribute {by!r} of {type(level).__name__} with "
            f"one id for each of its {n} samples, got {_described(labels)}; "
            f"{_candidates(level, n)}or give the DataModule a forget_indices(request)"
        )
    return values([labels[i] for i in positions], f"the attribute {by!r}")


def _held(level: Any, by: str) -> Any:
    """A column, if the dataset has columns; else an attribute. None if neither."""
    own = getattr(type(level), "ids_of_samples", None)  # `Retained` hides the rest
    if own is not None:
        return own(level, by)
    found = column(level, by)
    return getattr(level, by, None) if found is None and not is_hub(level) else found


def _described(labels: Any) -> str:
    if labels is None:
        return "none"
    size = f" of length {len(labels)}" if hasattr(labels, "__len__") else ""
    return f"{type(labels).__name__}{size}"


def _candidates(level: Any, n: int) -> str:
    if is_hub(level):
        return f"its columns are {', '.join(level.column_names[:9])}; "
    fit = [
        name
        for name, value in vars(level).items()
        if isinstance(value, (list, tuple, np.ndarray, Tensor)) and len(value) == n
    ]
    return f"of that length are {', '.join(fit[:5])}; add it, " if fit else "add it, "


def _by_predicate(
    wanted: Callable[[Any], Any], dataset: Any, removed: Sequence[int]
) -> list[int]:
    gone, found = {*removed}, []
    for i in range(len(dataset)):
        if i in gone:
            continue
        answer = wanted(dataset[i])
        if isinstance(answer, Tensor) and answer.numel() == 1:
            answer = answer.item()
        if not isinstance(answer, (bool, np.bool_)):
            raise ForgetSetError(
                f"expected True or False from the predicate on sample {i}, got "
                f"{answer!r:.60} ({type(answer).__name__})"
            )
        if answer:
            found.append(i)
    return found


def _with_copies(chosen: list[int], dataset: Any, removed: Sequence[int]) -> list[int]:
    """Add the other positions at which a Subset repeats a chosen sample."""
    if not isinstance(dataset, Subset):
        return chosen
    _, picked = flatten(dataset)
    wanted = {picked[i] for i in chosen}
    copies = {i for i, index in enumerate(picked) if index in wanted} - set(removed)
    if len(copies) + len(removed) == len(picked):
        raise ForgetSetError(
            "expected at least one sample to retain, got a request for copies of one "
            "sample that make up the whole dataset: delete the model"
        )
    return sorted(copies)


def _checked(indices: list[int], n: int, removed: Sequence[int]) -> list[int]:
    if not indices:
        raise ForgetSetError("expected at least one sample to forget, got none")
    outside = [i for i in indices if not 0 <= i < n]
    if outside:
        raise ForgetSetError(
            f"expected indices from 0 to {n - 1} of the training dataset, got "
            f"{some(outside)}"
        )
    unique = sorted(set(indices))
    if len(unique) != len(indices):
        repeated = (
            sorted({i for i in indices if indices.count(i) > 1})
            if (len(indices) < 10_000)
            else []
        )
        raise ForgetSetError(
            f"expected every sample once, got {len(indices) - len(unique)} "
            f"repetitions{': ' + some(repeated) if repeated else ''}: remove them"
        )
    again = sorted(set(unique) & set(removed))
    if again == unique:
        raise ForgetSetError(
            f"expected samples that are still in, got {some(again)}: already "
            "forgotten, all of them; an earlier request has already removed them, and "
            "its certificate and checkpoint remain valid"
        )
    unique = sorted(set(unique) - set(again))
    if again:
        _say_forgotten(again)
    if len(unique) + len(removed) == n:
        raise ForgetSetError(
            f"expected at least one sample to retain, got a request for all "
            f"{len(unique)}: to forget everything, delete the model"
        )
    return unique
