"""How a request gets on: in the user's own progress bar and loggers."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_unlearn.certificate.certificate import Certificate
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    Logger,
    ProgressBar,
    RichProgressBar,
    SIGTERMException,
    TQDMProgressBar,
    Trainer,
)
from lightning_unlearn.solvers.observer import NOBODY, Observer, State
from lightning_unlearn.weights.processes import Processes

# As the value of a SystemExit: printed, and an exit code of 1.
ENDED = (
    "expected to finish the request, got SIGTERM: nothing was changed; ask again, with "
    "resume_from= if the callback has a state_file"
)
_EVERY = 0.05  # seconds between two texts of a fast solver
STAGES = ("reading", "gradient", "solving", "certificate", "writing")


class _Bar:
    """The user's bar: what Lightning shows for ``predict``, with our words on it."""

    def __init__(self, trainer: Trainer, module: LightningModule, what: str) -> None:
        self.trainer, self.module, self.what = trainer, module, what
        self.bar: ProgressBar | None = None
        self.draw: Callable[[int, str], None] | None = None
        self.shown = -math.inf
        shown = trainer.progress_bar_callback
        if isinstance(shown, (TQDMProgressBar, RichProgressBar)):
            self.bar = shown
            shown.on_predict_start(trainer, module)
            self.draw = _drawing(shown)

    def show(self, done: int, text: str, passing: bool = False) -> None:
        """Stages done, and what is going on; a `passing` text may be left out."""
        now = time.monotonic()
        if self.draw is None or (passing and now < self.shown + _EVERY):
            return
        self.shown = now
        with told("the progress bar is off", self._off):
            self.draw(done, f"{self.what}: {text}")

    def _off(self) -> None:
        self.bar = self.draw = None

    def close(self) -> None:
        """Leave the line as it is."""
        if self.bar is not None:
            with told("the progress bar is off", self._off):
                self.bar.on_predict_end(self.trainer, self.module)


def _drawing(
    bar: TQDMProgressBar | RichProgressBar,
) -> Callable[[int, str], None] | None:
    """What draws (stages done, text) in a bar that was started; None if it is off."""
    if isinstance(bar, TQDMProgressBar):
        line = bar.predict_progress_bar
        line.reset(len(STAGES))

        def draw_line(done: int, text: str) -> None:
            line.n = done
            line.set_description_str(text, refresh=False)
            line.refresh()

        return draw_line
    progress = bar.progress
    if progress is None:
        return None
    task = progress.add_task("Unlearning", total=len(STAGES))

    def draw_task(done: int, text: str) -> None:
        progress.update(task, completed=done, description=text)
        bar.refresh()

    return draw_task


@dataclass
class Display:
    """Stages and residuals of one request, shown and logged as they come.

    Args:
        trainer: Whose bar and loggers they go to.
        bar: The bar.
        processes: Those that share the request.
        loggers: The Trainer's own; during passes it has others.
        residuals: (solver step, residual) so far. Of weights that saw the forgotten
            samples, so as secret as they are.
        done: Stages that are over.
        doing: What is going on, in words.
        broken: Loggers that failed.
        logs: Whether loggers are told.
    """

    trainer: Trainer
    bar: _Bar
    processes: Processes
    loggers: list[Logger] = field(default_factory=list)
    residuals: list[tuple[float, float]] = field(default_factory=list)
    done: int = 0
    doing: str = ""
    broken: list[Logger] = field(default_factory=list)
    logs: bool = True

    def stage(self, name: str) -> None:
        """One of `STAGES` begins."""
        self._listen()
        self.done, self.doing = STAGES.index(name), name
        self.bar.show(self.done, name)

    def reading(self, total: int) -> Callable[[int], None]:
        """Samples are read; what is returned is told how many more were.

        Args:
            total: Samples of this process.
        """
        begin, done = time.monotonic(), 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            rate = done / max(time.monotonic() - begin, 1e-9)
            left = math.ceil((total - done) / rate) if done else 0
            text = f"reading, {done:,} of {total:,} samples, {rate:.0f} a second"
            self.bar.show(self.done, f"{text}, {left} s left", passing=True)

        return count

    def end(self) -> None:
        """All is done, and nobody needs to be told what."""
        self.bar.show(len(STAGES), "done")

    def residual(self, value: float) -> None:
        """The solver has made a step."""
        self._listen()
        number = len(self.residuals) + 1
        self.residuals.append((float(number), value))
        self.doing = f"solving, step {number}, residual={value:.2e}"
        self.bar.show(self.done, self.doing, passing=True)
        self._log({"unlearn/residual": value}, number)

    def product(self, number: int, most: int) -> None:
        """A product has been made, and there is no new residual to show."""
        self._listen()
        text = f"{self.doing}, product {number} of at most {most}"
        self.bar.show(self.done, text, passing=True)

    def _listen(self) -> None:
        """End the request if the process was told to end: Lightning only notes it.

        Every process comes here together, and all of them leave.
        """
        with self.processes.summed(1) as (told_to,):
            told_to += float(self.trainer.received_sigterm)
        if float(told_to) > 0:
            raise SIGTERMException(ENDED)

    def finish(self, certificate: Certificate, matvecs: float, seconds: float) -> None:
        """Everything is done: log what the certificate says, and the cost."""
        self.bar.show(len(STAGES), f"done, {certificate.grade.value}")
        found = {
            "noise_std": certificate.noise_std,
            "sensitivity": certificate.sensitivity,
            # No epsilon is ever told without its grade.
            f"epsilon_{certificate.grade.value}": certificate.epsilon,
            "n_forget": certificate.n_forget,
            "n_retain": certificate.n_retain,
        }
        stated = {f"unlearn/{k}": float(v) for k, v in found.items() if v is not None}
        metrics = self.trainer.callback_metrics
        metrics.update({name: torch.tensor(value) for name, value in stated.items()})
        cost = {"unlearn/matvecs": matvecs, "unlearn/seconds": seconds}
        self._log({**stated, **cost}, len(self.residuals), save=True)

    def _log(self, metrics: dict[str, float], step: int, save: bool = False) -> None:
        for logger in self.loggers if self.logs else ():
            if logger in self.broken:
                continue
            name = type(logger).__name__
            with told(f"{name} gets no more", partial(self.broken.append, logger)):
                logger.log_metrics(metrics, step=step)
                if save:
                    logger.save()


@contextmanager
def told(what: str, then: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A block whose failure is a warning: the request is worth more.

    Args:
        what: What is the matter then.
        then: Called if it fails.
    """
    try:
        yield
    except Exception as problem:
        then()
        rank_zero_warn(f"{what}: {type(problem).__name__}: {problem!s:.200}")


@contextmanager
def shown(
    trainer: Trainer,
    module: LightningModule,
    processes: Processes,
    what: str = "Unlearning",
    logs: bool = True,
) -> Iterator[Display]:
    """A display that is taken down when the block ends, whatever happens."""
    bar = _Bar(trainer, module, what)
    try:
        yield Display(trainer, bar, processes, trainer.loggers, logs=logs)
    finally:
        bar.close()


@dataclass
class DisplayObserver(Observer):
    """Shows a solve, and lets it be kept in a file by another observer."""

    display: Display
    keeper: Observer = NOBODY

    def of(self, label: float) -> "DisplayObserver":
        """See `Observer`."""
        return DisplayObserver(self.display, self.keeper.of(label))

    def stage(self, name: str) -> None:
        """See `Observer`."""
        self.display.stage(name)

    def start(self) -> State | None:
        """See `Observer`."""
        return self.keeper.start()

    def product(self, number: int, most: int) -> None:
        """See `Observer`."""
        self.display.product(number, most)

    def step(self, number: int, residual: float, state: Callable[[], State]) -> None:
        """See `Observer`."""
        self.display.residual(residual)
        self.keeper.step(number, residual, state)

    def milestone(self, residual: float, state: Callable[[], State]) -> None:
        """See `Observer`."""
        self.display.residual(residual)
        self.keeper.milestone(residual, state)
