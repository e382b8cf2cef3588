"""That nothing is decided by what a private training computes without noise."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Subset

from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin.data import training_data
from lightning_unlearn.plugin.lightning import Trainer, is_overridden
from lightning_unlearn.plugin.run import compat
from lightning_unlearn.plugin.training.training_record import TrainingRecord

#: Name of the epsilon so far that is logged: a function of numbers, not of data.
SHOWN = "unlearn/epsilon_one"


def watched(trainer: Trainer) -> set[str]:
    """Metrics by which something is decided."""
    return {what for _, what in _watched(trainer)}


def _watched(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Who decides by which metric."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if getattr(callback, "monitor", None) is not None:
            yield type(callback).__name__, callback.monitor
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau:
            yield type(config.scheduler).__name__, config.monitor


def decisions(trainer: Trainer) -> list[str]:
    """Who decides by which metric of data."""
    found = {f"{who} by {what!r}" for who, what in _watched(trainer) if what != SHOWN}
    return sorted(found)


def check_monitors(trainer: Trainer) -> None:
    """Refuse decisions made on what the training logs, which is not private.

    Raises:
        SetupError: If a callback or a schedule goes by it.
    """
    finders = [
        type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if "LearningRateFinder" in {kind.__name__ for kind in type(callback).__mro__}
    ]
    if finders:
        raise SetupError(
            f"expected a learning rate that is known before for PrivateTraining, got "
            f"{finders[0]}, which looks for one by losses of the training samples: set "
            "lr by hand, or look for it on other data"
        )
    logged = compat.logged_in_training(trainer) - {SHOWN}
    found = [f"{who} by {what!r}" for who, what in _watched(trainer) if what in logged]
    if found:
        raise SetupError(
            "expected no decision by what the training steps log for "
            f"PrivateTraining, got {', '.join(found)}: it is computed on private "
            "samples without noise; monitor a metric of validation data that are no "
            "training data"
        )


def check_validation(
    trainer: Trainer, loader: DataLoader, record: TrainingRecord
) -> None:
    """Refuse decisions made on validation data that are the training's own.

    Raises:
        SetupError: If a callback or a schedule goes by them.
    """
    check_monitors(trainer)
    found = decisions(trainer)
    if not found:
        return
    own, positions = root_of(loader.dataset)
    drawn = range(len(positions)) if record.drawn is None else record.drawn
    used = {positions[i] for i in drawn}
    for other in tree_leaves(trainer.val_dataloaders):
        dataset = getattr(other, "dataset", None)
        if dataset is None:
            continue
        root, places = root_of(dataset)
        same = root is own and not used.isdisjoint(places)
        if not same and len(places) == record.n_train and record.fingerprint:
            now = training_data.fingerprint(dataset, record.salt)
            same = now == record.fingerprint
        if same:
            raise SetupError(
                "expected validation data that are no training data where something is "
                f"decided by them in a PrivateTraining, got training samples among "
                f"them, and {', '.join(found)}: their metrics have no noise; hold "
                "samples out (torch.utils.data.random_split), or take no monitor"
            )


def root_of(dataset: Any) -> tuple[Any, Any]:
    """The dataset under subsets, and the positions in it."""
    places: Any = range(len(dataset))
    while isinstance(dataset, Subset):
        places = [dataset.indices[i] for i in places]
        dataset = dataset.dataset
    return dataset, places


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Learning rates and all else that an optimizer steps by."""
    return [
        {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer, and those that it holds: `ZeroRedundancyOptimizer` has one."""
    found = [optimizer]
    for one in found:  # it grows
        held = [x for x in vars(one).values() if isinstance(x, Optimizer)]
        found += [x for x in held if not any(x is known for known in found)]
    return found


def memory_of(optimizer: Optimizer) -> list[tuple[int, int]]:
    """What tells whether the tensors of an optimizer's state were written to."""
    states = [s for part in parts_of(optimizer) for s in part.state.values()]
    kept = [x for state in states for x in tree_leaves(state)]
    return [(id(x), x._version) for x in kept if isinstance(x, torch.Tensor)]


def schedule_lag(trainer: Trainer) -> int | None:
    """Times at which a module was to step its schedules, less those at which it did.

    None where Lightning steps them, or where nobody can tell.
    """
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    places = [getattr(schedule, "last_epoch", None) for schedule in schedules]
    steps = [place for place in places if isinstance(place, int)]
    own = is_overridden("lr_scheduler_step", trainer.lightning_module)
    if not own or not places or len(steps) < len(places):
        return None
    return trainer.fit_loop.epoch_loop.scheduler_progress.total.completed - sum(steps)


def check_lag(before: int | None, now: int | None) -> None:
    """Refuse a schedule that a module steps at some of its times: by what, who knows.

    Raises:
        SetupError: If it does.
    """
    if now != before:
        raise SetupError(
            "expected a schedule that takes one step each time for PrivateTraining, "
            "got an lr_scheduler_step that leaves some out, or repeats some: what it "
            "was decided by may be private; call scheduler.step() once, whatever the "
            "losses are"
        )


def check_settings(
    trainer: Trainer, optimizer: Optimizer, before: list[dict[str, Any]]
) -> None:
    """Refuse learning rates that no schedule has set: by what, nobody knows.

    Args:
        trainer: In a step.
        optimizer: About to step.
        before: Its settings when it last did.

    Raises:
        SetupError: If something else has set them.
    """
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    now = settings_of(optimizer)
    changed = set[str]()
    for place, (old, new) in enumerate(zip(before, now, strict=False)):
        said = [_last(s, place) for s in schedules]
        for name in {*old, *new}:
            by_schedule = bool(schedules) and (name != "lr" or new[name] in said)
            if old.get(name) != new.get(name) and not by_schedule:
                changed.add(name)
    if changed or len(before) != len(now):
        raise SetupError(
            "expected learning rates that only a schedule of configure_optimizers "
            f"changes for PrivateTraining, got {', '.join(sorted(changed)) or 'groups'}"
            " changed by hand: what it was decided by may be private; return an "
            "lr_scheduler (LambdaLR does any warm-up)"
        )


def _last(schedule: Any, place: int) -> Any:
    last = getattr(schedule, "_last_lr", None) or []
    return last[place] if place < len(last) else None


class Stops:
    """Who stops a training: a rule that is known, or whatever stands beside one.

    Args:
        trainer: In a training that begins.
        cut: Whether something has ended an epoch before its batches.
    """

    def __init__(self, trainer: Trainer, cut: Callable[[], bool]) -> None:
        self.trainer, self.cut = trainer, cut
        self.known = False  # whether a known rule has, before anybody else did
        self._watched = list[tuple[Any, str]]()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            check = compat.stopping_check(callback)
            if check is not None:
                self._watch(callback, check)

    def _watch(self, callback: Any, check: str) -> None:
        own = getattr(callback, check)

        def watched(*args: Any, **options: Any) -> None:
            before = self.trainer.should_stop or self.cut()
            own(*args, **options)
            self.known = self.known or (self.trainer.should_stop and not before)

        setattr(callback, check, watched)
        self._watched.append((callback, check))

    def goes_on(self) -> None:
        """Another batch: a stop that somebody has taken back is none."""
        self.known = self.known and self.trainer.should_stop

    def close(self) -> None:
        """The training is over: callbacks are as before."""
        for callback, check in self._watched:
            delattr(callback, check)

    def early(self, done: int, steps: int) -> str | None:
        """Why a training ends before its steps, where no known rule has said so.

        Args:
            done: Steps it has taken.
            steps: That it had to take, when it began.
        """
        return None if done == steps or self.known else unknown_stop(done, steps)


def unknown_stop(done: int, steps: int) -> str:
    """What is said of a training that something has stopped, or cut short."""
    return (
        f"one that was stopped after {done} of {steps} steps (should_stop, a lower "
        "max_epochs, a hook that returns -1) by a rule that is not known: it may "
        "have looked at private losses"
    )
