"""Several processes as threads of one, for the floors below the Trainer."""

import threading
from concurrent.futures import ThreadPoolExecutor

from lightning_unlearn.weights.processes import Processes


def run(world, work):
    """Call ``work(processes)`` in each; what each returned or raised, by rank."""
    barrier, slots = threading.Barrier(world, timeout=30), [None] * world

    def exchange(rank, value):
        slots[rank] = value
        barrier.wait()
        everything = list(slots)
        barrier.wait()
        return everything

    def member(rank):
        def add(tensor):
            tensor.copy_(sum(exchange(rank, tensor.clone())))

        processes = Processes(
            rank=rank,
            world=world,
            add=add,
            gather=lambda value: exchange(rank, value),
            broadcast=lambda value: exchange(rank, value)[0],
        )
        try:
            return work(processes)
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(member, range(world)))
