"""A request or a preparation is told to end in the middle: it is heard there."""

import os
import signal
from functools import partial

import pytest

from lightning_unlearn import prepare
from lightning_unlearn.plugin.run import progress
from lightning_unlearn.step.head.convex_objective import ConvexObjective
from lightning_unlearn.step.network.empirical_objective import EmpiricalObjective
from tests.helpers.lightning import SIGTERMException, TQDMProgressBar
from tests.helpers.nets import MLP, fitted, same, weights

THIRD = 3  # of 40 products of Lanczos, on batches that are all read


@pytest.fixture
def products(monkeypatch):
    """Products of Lanczos as they come; at the third the process hears a signal."""
    made, sampled = [], EmpiricalObjective.sampled_hessian

    def armed(told):
        def counted(self, *args):
            matvec = sampled(self, *args)

            def product(v):
                made.append(len(made) + 1)
                if len(made) == THIRD:
                    os.kill(os.getpid(), told)
                return matvec(v)

            return product

        monkeypatch.setattr(EmpiricalObjective, "sampled_hessian", counted)
        return made

    before = {told: signal.getsignal(told) for told in (signal.SIGTERM, signal.SIGINT)}
    yield armed
    for told, handler in before.items():
        signal.signal(told, handler)


@pytest.mark.parametrize(
    ("told", "ended"),
    [(signal.SIGTERM, SIGTERMException), (signal.SIGINT, SystemExit)],
    ids=["SIGTERM", "Ctrl-C"],
)
@pytest.mark.parametrize("verb", ["unlearn", "prepare"])
def test_it_is_heard_between_two_products(
    told, ended, verb, products, monkeypatch, tmp_path, capsys
):
    net, fit_trainer, callback, _ = fitted(
        MLP(), noise_std=0.0, ledger=tmp_path / "l.jsonl", prepared="secret.pt"
    )
    before, found = weights(net), set(os.listdir())
    ways = {
        "unlearn": partial(fit_trainer.unlearn, [1], save_to=tmp_path / "clean.ckpt"),
        "prepare": partial(prepare, fit_trainer),
    }
    made = products(told)
    with pytest.raises(ended) as said:
        ways[verb]()
    if told == signal.SIGTERM:
        assert "nothing was changed" in str(said.value)
    assert "Interrupted: nothing was changed" in capsys.readouterr().err
    assert made == list(range(1, THIRD + 1))
    assert same(weights(net), before)
    assert callback.record.removed == []
    assert callback.bound_state is None
    assert set(os.listdir()) - {".l.jsonl.lock"} == found
    monkeypatch.undo()
    fit_trainer._signal_connector.received_sigterm = False  # Lightning remembers it
    assert fit_trainer.unlearn([1]).n_forget == 1


def test_the_bar_shows_its_products(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_EVERY", 0.0)  # leave nothing out
    bar = {"enable_progress_bar": True, "callbacks": [TQDMProgressBar()]}
    _, fit_trainer, _, _ = fitted(MLP(), noise_std=0.0, trainer_options=bar)
    capsys.readouterr()
    fit_trainer.unlearn([1])
    out = capsys.readouterr().out
    first, later = "gradient, product 1 of at most 40", "gradient, product 2 of"
    assert out.index("Unlearning: gradient:") < out.index(first) < out.index(later)


def test_a_head_that_is_prepared_hears_it_at_a_step(monkeypatch):
    net, fit_trainer, callback, _ = fitted()
    before, gradient = weights(net), ConvexObjective.gradient

    def told_to_end(self, w):
        fit_trainer._signal_connector.received_sigterm = True
        return gradient(self, w)

    monkeypatch.setattr(ConvexObjective, "gradient", told_to_end)
    with pytest.raises(SIGTERMException, match="nothing was changed"):
        prepare(fit_trainer)
    assert same(weights(net), before)
    assert callback.bound_state is None
