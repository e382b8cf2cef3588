"""Processes that are forked from one that has imported everything already.

What a job in processes of its own costs is mostly the imports of each. Here one
process a session imports them (`multiprocessing`'s fork server), does nothing else, and
each job is a fork of it: a process as new as any, with no tensor, thread or group yet.

Where it has several processes they find the environment of ``torchrun``, by which
Lightning starts none itself. What a job spawns gets its pickle as ever, in a fork of
that same process. A job that is to be started by Lightning, or killed, needs ``python
-m`` (`distributed_job.start` with ``anew=True``).
"""

import functools
import multiprocessing
import os
import random
import socket
import subprocess
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).parents[3]
PRELOADED = ("distributed_job", "certified_job", "covered_job", "private_job")
GRACE = 20  # seconds for the others, once one has failed


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"tests.plugin.helpers.{m}" for m in PRELOADED])
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, path):
        forkserver.ensure_running()
    return context


def _environment(rank, world, port):
    told = {
        "TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0,
        "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
    }  # fmt: skip
    return {name: str(value) for name, value in told.items()} if world > 1 else {}


def _inside(job, arguments, environment, said):
    os.chdir(ROOT)
    os.environ.update(environment)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    random.seed()  # forks would draw the same
    np.random.seed()
    SpawnProcess._Popen = staticmethod(ForkServerProcess._Popen)
    forkserver._forkserver.ensure_running = lambda: None  # it would start another
    job(*arguments)


def run(job, *arguments, strategy=None, timeout=240):
    """Call a function of a module in processes of its own.

    Args:
        job: The function.
        arguments: Of it; they are pickled.
        strategy: The name of the Trainer's. None, or one that launches processes, has
            one process; every other has two, as under torchrun.
        timeout: In seconds.

    Returns:
        As of `subprocess.run`: what all of them wrote, one after the other.
    """
    alone = strategy is None or strategy.startswith("ddp_")
    processes = 1 if alone else 2
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        started, said = [], []
        for rank in range(processes):
            said.append([Path(name, f"{kind}{rank}") for kind in ("out", "err")])
            told = (job, arguments, _environment(rank, processes, port), said[-1])
            started.append(_context().Process(target=_inside, args=told))
        for process in started:
            process.start()
        _wait(started, timeout)
        out, err = (
            "".join(p.read_text() for p in kind) for kind in zip(*said, strict=True)
        )
        code = next((p.exitcode for p in started if p.exitcode), 0)
    return subprocess.CompletedProcess(job.__module__, code, out, err)


def _wait(started, timeout):
    """Until all have ended; nobody waits for long for one that failed."""
    end = time.monotonic() + timeout
    while any(process.is_alive() for process in started):
        if any(process.exitcode for process in started):
            end = min(end, time.monotonic() + GRACE)
        if time.monotonic() > end:
            for process in started:
                process.kill()
        time.sleep(0.02)
