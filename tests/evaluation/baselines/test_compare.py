"""One table and one figure: rows against numbers by hand, and what is refused."""

import builtins
import copy
import math
import time

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from scipy.stats import mannwhitneyu
from torch import nn

from lightning_unlearn.errors import ArgumentError, ModelError, SetupError
from lightning_unlearn.evaluation import Baseline, compare, fine_tune

SPLITS = ("forget", "retain", "test")


def samples(n, seed):
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=made)
    return x, torch.randint(0, 4, (n,), generator=made)


DATA = {"forget": samples(30, 1), "retain": samples(50, 2), "test": samples(40, 3)}


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))


def double(trained):
    with torch.no_grad():
        for p in trained.parameters():
            p *= 2


def noisy(trained):
    double(trained)
    return Baseline("noisy", 1.0, "some text", 2.0, 1e-05, 0.5)


METHODS = {
    "doubled": double,
    "another": lambda m: model(7),
    "tuned": lambda m: Baseline("x", 1.0, "no certificate"),
    "noisy": noisy,
}


def compared(methods=METHODS, **changed):
    return compare(
        methods, **{"original": model(), "retrained": model(1), **DATA, **changed}
    )


def numbers(left, right):
    """Accuracies, AUC, KL and JS with numpy and scipy."""
    found = {}
    for split in SPLITS:
        x, y = (t.numpy() for t in DATA[split])
        for side, m in (("left", left), ("right", right)):
            w, b = (p.detach().double().numpy() for p in m[0].parameters())
            logits = x.astype(np.float64) @ w.T + b
            log_p = log_softmax(logits, axis=1)
            found[split, side, "p"] = np.exp(log_p)
            found[split, side, "score"] = log_p[np.arange(len(y)), y]
            found[split, side, "accuracy"] = float((logits.argmax(1) == y).mean())
    p, q = found["forget", "left", "p"], found["forget", "right", "p"]
    middle = (p + q) / 2
    auc = {}
    for side in ("left", "right"):
        members = found["forget", side, "score"]
        others = found["test", side, "score"]
        u = mannwhitneyu(members, others).statistic
        auc[side] = u / (len(members) * len(others))
    return {
        "accuracy": {s: found[s, "left", "accuracy"] for s in SPLITS},
        "gaps": {
            s: found[s, "left", "accuracy"] - found[s, "right", "accuracy"]
            for s in SPLITS
        },
        "auc": auc["left"],
        "auc_gap": auc["left"] - auc["right"],
        "kl": rel_entr(p, q).sum(1).mean(),
        "js": (rel_entr(p, middle) + rel_entr(q, middle)).sum(1).mean() / 2,
    }


def test_every_row_is_what_numpy_and_scipy_find():
    rows = {row.name: row for row in compared(retrained_seconds=3.0).rows}
    assert list(rows) == ["original", "retrained", *METHODS]
    doubled = model()
    double(doubled)
    models = {
        "original": model(),
        "retrained": model(1),
        "doubled": doubled,
        "another": model(7),
        "tuned": model(),
        "noisy": doubled,
    }
    for name, row in rows.items():
        expected = numbers(models[name], model(1))
        assert row.auc_gap.value == pytest.approx(expected.pop("auc_gap"), abs=1e-12)
        for field, value in expected.items():
            assert getattr(row, field) == pytest.approx(value, abs=2e-6), (name, field)
    assert rows["original"].seconds is None
    assert rows["retrained"].seconds == 3.0


def test_the_retrained_model_is_its_own_reference():
    retrained = compared().rows[1]
    assert set(retrained.gaps.values()) == {0.0}
    assert retrained.auc_gap == (0.0, 0.0, 0.0)
    assert (retrained.kl, retrained.js) == (0.0, pytest.approx(0, abs=1e-15))


def test_claims_are_those_of_the_method_and_nothing_else():
    claims = {row.name: row.claim for row in compared().rows}
    assert claims == {
        "original": "none",
        "retrained": "the reference",
        "doubled": "not stated",
        "another": "not stated",
        "tuned": "none",
        "noisy": "epsilon 2, delta 1e-5",
    }
    told = compared(claims={"doubled": "certified, epsilon 1"})
    assert told.rows[2].claim == "certified, epsilon 1"


def test_models_are_as_they_were_and_each_method_has_a_copy_of_its_own():
    original, retrained = model().train(), model(1)
    retrained[1].eval()
    before = copy.deepcopy((original.state_dict(), retrained.state_dict()))
    given = []

    def kept(trained):
        given.append((trained, copy.deepcopy(trained.state_dict())))
        double(trained)

    compared({"a": kept, "b": kept}, original=original, retrained=retrained)
    for state, now in zip(before, (original, retrained), strict=True):
        for name, value in now.state_dict().items():
            assert torch.equal(value, state[name])
    assert original.training
    assert [m.training for m in retrained] == [True, False]
    (a, at_a), (b, at_b) = given
    assert a is not b
    assert original not in (a, b)
    for name, value in at_a.items():
        assert torch.equal(value, at_b[name])


def test_the_time_is_that_of_the_method_alone(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert compared({"doubled": double}).rows[2].seconds == 2.5


def test_batches_do_not_matter():
    whole, parts = compared(), compared(batch_size=7)
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert one.auc == pytest.approx(other.auc, abs=1e-12)
        assert one.kl == pytest.approx(other.kl, abs=1e-6)


def test_baselines_run_as_methods():
    def cross_entropy(m, batch):
        return nn.functional.cross_entropy(m(batch[0]), batch[1])

    def tuned(m):
        return fine_tune(
            m,
            cross_entropy,
            [DATA["retain"]],
            epochs=20,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        )

    row = compared({"fine-tune": tuned}).rows[2]
    assert row.claim == "none"
    assert row.accuracy["retain"] > compared().rows[0].accuracy["retain"]


def test_the_table_is_aligned_and_has_every_number():
    text = str(compared({"no\x1b[31mise": noisy}, retrained_seconds=0.5))
    head, *lines, note = text.splitlines()
    assert note.startswith("in brackets: less the retrained model's")
    assert head.startswith("method")
    assert head.endswith("MIA AUC      KL      JS  claimed")
    assert "\x1b" not in text
    assert lines[2].startswith(r"no\x1b[31mise")
    at = head.index("claimed")
    claims = [line[at:] for line in lines]
    assert claims == ["none", "the reference", "epsilon 2, delta 1e-5"]
    assert lines[0].split()[:2] == ["original", "-"]
    assert lines[1].split()[:2] == ["retrained", "0.5"]
    row = compared().rows[0]
    cells = (f"{row.accuracy['test']:.3f} ({row.gaps['test']:+.3f})", f"{row.kl:.4f}")
    assert all(cell in lines[0] for cell in cells)
    assert {line.index(")") for line in lines} == {lines[0].index(")")}


def test_the_markdown_table_has_as_many_cells_everywhere():
    lines = compared({"a|b": double}).markdown().splitlines()
    assert len(lines) == 5
    counts = {line.replace("\\|", "").count("|") for line in lines}
    assert counts == {10}
    assert lines[4].startswith(r"| a\|b | ")


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_figure_is_drawn_without_a_backend_being_chosen(tmp_path, ending):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"figure.{ending}"
    assert compared({"_a$b^c": double, **METHODS}).figure(path) == path
    assert path.stat().st_size > 5000
    if ending == "svg":
        text = path.read_text()
        assert "<!-- original -->" in text.replace("<!--  ", "<!-- ")
        assert "_a$b^c" in text


def test_a_figure_overwrites_nothing_and_has_an_ending_it_can_draw(tmp_path):
    taken = tmp_path / "taken.png"
    taken.write_text("mine")
    comparison = compared({"doubled": double})
    with pytest.raises(SetupError, match="new file in a folder.*nothing is overwri"):
        comparison.figure(taken)
    with pytest.raises(SetupError, match="new file in a folder that exists"):
        comparison.figure(tmp_path / "nowhere" / "a.png")
    with pytest.raises(SetupError, match=r"end in .png, .pdf, .svg, got 'a.jpg'"):
        comparison.figure(tmp_path / "a.jpg")
    assert taken.read_text() == "mine"


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    comparison = compared({"doubled": double})
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SetupError, match=r"matplotlib.*\.\[figures\]"):
        comparison.figure(tmp_path / "a.png")


def broken(trained):
    raise RuntimeError("it went wrong")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"methods": {}}, ArgumentError, r"methods to be at least one.*got \[\]"),
        ({"methods": {"original": double}}, ArgumentError, "other than 'original'"),
        ({"methods": {"retrained": double}}, ArgumentError, "other than 'original'"),
        (
            {"methods": {"a": double, "b": broken}},
            ModelError,
            "method 'b' to train its copy.*RuntimeError: it went wrong",
        ),
        (
            {"methods": {"a": lambda m: 1}},
            ArgumentError,
            "method 'a' to return a model, a Baseline or None, got int",
        ),
        ({"original": None}, ArgumentError, "original to be a module, got NoneType"),
        ({"retrained": None}, ArgumentError, "retrained to be a module, got NoneType"),
        ({"forget": DATA["forget"][0]}, ArgumentError, "forget to be .*got Tensor"),
        ({"test": (torch.ones(0, 3), torch.ones(0))}, ArgumentError, "test to be"),
        (
            {"retain": (torch.ones(2, 3), torch.ones(3).long())},
            ArgumentError,
            "retain with as many inputs as targets, got 2 and 3",
        ),
        (
            {"test": (torch.ones(2, 3), torch.ones(2))},
            ArgumentError,
            "targets to be 2 class indices",
        ),
        ({"batch_size": 0}, ArgumentError, "batch_size to be an integer >= 1"),
        ({"retrained_seconds": -1.0}, ArgumentError, "retrained_seconds to be"),
        ({"retrained_seconds": math.nan}, ArgumentError, "retrained_seconds to be"),
        (
            {"claims": {"other": "x"}},
            ArgumentError,
            r"claims of methods, got \['other'\]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        compared(**changed)


def test_a_failure_keeps_its_cause():
    with pytest.raises(ModelError, match="method 'b'") as caught:
        compared({"b": broken})
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_outputs_that_are_not_finite_are_refused():
    def infinite(trained):
        nn.init.constant_(trained[0].bias, math.inf)

    with pytest.raises(ArgumentError, match="finite, got 120 of 120 values"):
        compared({"a": infinite})
