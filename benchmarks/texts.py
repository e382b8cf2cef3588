"""Banking77 with a public language model: how accurate, how fast, with certificate?

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/texts.py MODEL

One thread. It is ``examples/banking77.py``, with a clock; MODEL as there.
"""

import sys
import time
from importlib.metadata import version

import torch
from common import folder, publish, table


def timed(seconds, name, method):
    def run(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds[name] = time.perf_counter() - begin

    return run


def main(*model):
    import banking77
    import lightning as L

    torch.set_num_threads(1)
    seconds = {}
    for name in ("fit", "unlearn", "test"):
        setattr(L.Trainer, name, timed(seconds, name, getattr(L.Trainer, name)))
    result, measured = banking77.main(str(folder("banking77")), *model)
    certificate = result.certificate
    rows = [
        ["test accuracy after the request, %", f"{100 * measured[0]['test_acc']:.1f}"],
        ["grade", certificate.grade.value],
        ["epsilon, delta", f"{certificate.epsilon:g}, {certificate.delta:g}"],
        ["weights of the head", f"{certificate.n_parameters:,}"],
        ["forgotten, retained", f"{result.n_forget:,}, {result.n_retain:,}"],
        ["fit: reading and solving, s", f"{seconds['fit']:.1f}"],
        ["request, s", f"{seconds['unlearn']:.1f}"],
        ["test, s", f"{seconds['test']:.1f}"],
    ]
    publish(
        "texts",
        "Banking77 with a public language model",
        f"Command: `python benchmarks/texts.py MODEL`; transformers "
        f"{version('transformers')}, datasets {version('datasets')}. "
        "MODEL is all-MiniLM-L6-v2 (6 layers, 384 wide). 10,003 questions, 77 intents, "
        "3,080 for the test; all questions with the word phone are forgotten.",
        table(["", ""], rows),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
