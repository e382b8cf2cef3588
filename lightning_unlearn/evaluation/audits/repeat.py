"""Runs of an experiment: coins, processes, and the folder that keeps what is done."""

import multiprocessing
import os
import pickle
import secrets
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from lightning_unlearn.errors import SetupError
from lightning_unlearn.evaluation.audits import experiment as experiments
from lightning_unlearn.evaluation.audits.experiment import Experiment, RunRecord

Trial = tuple[list[bool], int]  # coins, and draws of the noise


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def tossed(r: int) -> list[bool]:
    """A fair coin for each canary, from the operating system."""
    coins = [bool(secrets.randbits(1)) for _ in range(r)]
    if not any(coins):
        raise SetupError(
            f"expected some canaries in, got none of {r}: the coins left all of them "
            "out, which happens once in a million; call audit again"
        )
    return coins


def done(
    folder: Path | None, names: list[str], identity: str, r: int
) -> dict[str, RunRecord]:
    """The runs of these names that are kept already; the folder is made if need be."""
    if folder is None:
        return {}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise SetupError(
            f"expected a folder for the runs at {folder}, got {type(problem).__name__} "
            f"({problem.strerror}): choose one that can be written"
        ) from None
    paths = {name: _file(folder, name) for name in names}
    return {
        name: experiments.read(path, identity, r)
        for name, path in paths.items()
        if path.exists()
    }


def carried_out(
    experiment: Experiment,
    todo: dict[str, Trial],
    workers: int,
    folder: Path | None,
) -> Iterator[tuple[str, RunRecord]]:
    """Name and outcome of each run, as they end; each is kept where it was made."""
    files = {n: None if folder is None else _file(folder, n) for n in todo}
    if workers == 1:
        for name, trial in todo.items():
            yield name, _one(experiment, *trial, files[name])
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, mp_context=context)
    waiting, running = list(todo), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:  # none waits in a queue
                name = waiting.pop(0)
                trial = (*todo[name], files[name], threads)
                running[pool.submit(_in_worker, experiment, *trial)] = name
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise SetupError(
            "expected workers that finish, but one ended: a script needs if __name__ "
            '== "__main__": around its own code, and each worker its own memory; runs '
            "that are finished stay in folder="
        ) from None
    finally:  # also when it is interrupted: nothing more is started
        pool.shutdown(wait=True, cancel_futures=True)


def _in_worker(
    experiment: Experiment,
    included: list[bool],
    draws: int,
    file: Path | None,
    threads: int,
) -> RunRecord:
    torch.set_num_threads(threads)
    try:
        return _one(experiment, included, draws, file)
    except Exception as error:
        try:  # an exception of one's own may not come back as it went
            pickle.loads(pickle.dumps(error))
        except Exception:
            told = f"{type(error).__name__}: {error}"
            raise SetupError(f"expected a run that ends, got {told}") from None
        raise


def _one(
    experiment: Experiment, included: list[bool], draws: int, file: Path | None
) -> RunRecord:
    """Kept where it was made, so that nothing that fails elsewhere loses it."""
    run = experiments.carried_out(experiment, included, draws)
    if file is not None:
        experiments.write(file, experiment.identity, run)
    return run
