"""Stages and residuals in the user's own bar, metrics in the user's own loggers."""

import csv
import io

import pytest
import torch

from lightning_unlearn import preflight, prepare
from lightning_unlearn.errors import ForgetSetError
from lightning_unlearn.plugin.run import progress
from tests.helpers.lightning import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    RichProgressBar,
    TensorBoardLogger,
    TQDMProgressBar,
)
from tests.helpers.nets import MLP, HeadNet, fitted

BAR = {"enable_progress_bar": True}


def with_bar(bar=None, net=None, **options):
    extra = [bar or TQDMProgressBar()]
    return fitted(net=net, trainer_options={**BAR, "callbacks": extra}, **options)


@pytest.mark.parametrize("options", [{}, {"noise_std": 0.0}])
def test_stages_and_residuals_in_the_tqdm_bar(options, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)  # leave nothing out
    net = MLP() if options else HeadNet()
    _, fit_trainer, _, _ = with_bar(net=net, **options)
    capsys.readouterr()
    result = fit_trainer.unlearn([1, 2])
    out = capsys.readouterr().out
    for stage in ("reading", "gradient", "solving", "certificate", "writing"):
        assert f"Unlearning: {stage}" in out
    assert "solving, step 1, residual=" in out
    assert f"Unlearning: done, {result.certificate.grade.value}: 100%" in out
    assert "5/5" in out


def test_the_users_own_bar_is_used(capsys):
    class Mine(TQDMProgressBar):
        def init_predict_tqdm(self):
            line = super().init_predict_tqdm()
            line.bar_format = "MINE {desc} {n_fmt}"
            return line

    _, fit_trainer, _, _ = with_bar(Mine())
    fit_trainer.unlearn([1])
    assert "MINE Unlearning: done, certified" in capsys.readouterr().out


def test_the_rich_bar():
    screen = io.StringIO()
    options = {"file": screen, "force_terminal": True, "width": 100}
    _, fit_trainer, _, _ = with_bar(RichProgressBar(console_kwargs=options))
    fit_trainer.unlearn([1, 2])
    shown = screen.getvalue()
    assert "Unlearning: done, certified" in shown
    assert "5/5" in shown


def test_the_rich_bar_s_thread_may_draw_while_the_checkpoint_is_written(tmp_path):
    """It asks the Trainer for a Rich bar, while others' states are kept out."""

    class Telling(RichProgressBar):
        def state_dict(self):
            return {"seen": "losses"}

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["told"] = "losses"

    class Drawing(HeadNet):
        def on_save_checkpoint(self, checkpoint):
            bar.progress.refresh()  # what its thread does ten times a second
            seen.append(type(self.trainer.progress_bar_callback))

    seen, screen = [], io.StringIO()
    options = {"file": screen, "force_terminal": True, "width": 100}
    bar = Telling(console_kwargs=options)
    _, fit_trainer, _, _ = with_bar(bar, net=Drawing())
    fit_trainer.unlearn([1, 2], save_to=tmp_path / "clean.ckpt")
    assert seen == [RichProgressBar]
    held = torch.load(tmp_path / "clean.ckpt", weights_only=True)
    assert "told" not in held
    assert list(held["callbacks"]) == ["UnlearningCallback"]


def test_quiet_without_a_bar(capsys):
    _, fit_trainer, _, _ = fitted()
    capsys.readouterr()
    fit_trainer.unlearn([1])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_bar_is_taken_down_when_a_request_fails(kind):
    bar = kind()
    _, fit_trainer, callback, _ = with_bar(bar)
    with pytest.raises(ForgetSetError, match="at least one sample"):
        fit_trainer.unlearn([])
    if kind is TQDMProgressBar:
        assert bar.predict_progress_bar.disable  # closed
    else:
        assert bar._progress_stopped
    assert fit_trainer.unlearn([1]).n_forget == 1


def test_residuals_are_those_of_the_solve():
    _, fit_trainer, _, _ = fitted(net=MLP(), noise_std=0.0)
    result = fit_trainer.unlearn([1, 2])
    steps, values = zip(*result.residuals, strict=True)
    assert steps == tuple(range(1, len(steps) + 1))
    assert len(steps) == result.solution.steps + 1
    assert values[-1] == result.solution.residual  # recomputed from x
    assert values[-2] == pytest.approx(values[-1], rel=0.05)


def test_residuals_of_a_prepared_head_are_shown_too():
    _, fit_trainer, _, _ = fitted()
    prepare(fit_trainer)
    result = fit_trainer.unlearn([1, 2])
    assert len(result.residuals) >= 2
    assert result.residuals[-1][1] <= 1e-6


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_in_the_loggers(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'mlruns'}"
    loggers = [
        CSVLogger(tmp_path, name="csv"),
        TensorBoardLogger(str(tmp_path), name="tb"),
        MLFlowLogger("it", tracking_uri=uri),
    ]
    _, fit_trainer, _, _ = fitted(trainer_options={"logger": loggers})
    result = fit_trainer.unlearn([1, 2])
    values = [value for _, value in result.residuals]

    rows = read(tmp_path / "csv" / "version_0" / "metrics.csv")
    logged = [r["unlearn/residual"] for r in rows if r["unlearn/residual"]]
    assert [float(v) for v in logged] == values
    last = rows[-1]
    assert float(last["unlearn/epsilon_certified"]) == 1.0
    assert float(last["unlearn/noise_std"]) == result.certificate.noise_std
    assert float(last["unlearn/n_forget"]) == 2

    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    scalars = events.Scalars("unlearn/residual")
    assert [e.value for e in scalars] == pytest.approx(values, rel=1e-6)
    assert events.Scalars("unlearn/epsilon_certified")[0].value == 1.0

    metric = next((tmp_path / "mlruns").rglob("unlearn/residual"))
    assert len(metric.read_text().splitlines()) == len(values)


def test_no_epsilon_is_logged_without_its_grade(tmp_path):
    for options, expected in (
        ({"max_norm": 20.0, "accept_noise": True}, {"unlearn/epsilon_vacuous"}),
        ({"noise_std": 0.0}, set()),
    ):
        logger = CSVLogger(tmp_path)
        _, fit_trainer, _, _ = fitted(
            net=MLP(), trainer_options={"logger": logger}, **options
        )
        fit_trainer.unlearn([1])
        rows = read(tmp_path / "lightning_logs" / f"version_{logger.version}" /
                    "metrics.csv")  # fmt: skip
        assert {name for name in rows[-1] if "epsilon" in name} == expected
        found = fit_trainer.callback_metrics
        assert {name for name in found if "epsilon" in name} == expected
        assert torch.equal(found["unlearn/n_forget"], torch.tensor(1.0))


class Broken(Logger):
    name, version = "broken", 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if "unlearn/seconds" in metrics:
            raise OSError("disk full")


def test_a_logger_that_fails_at_the_end_does_not_hide_the_result():
    _, fit_trainer, callback, _ = fitted(trainer_options={"logger": Broken()})
    with pytest.warns(UserWarning, match="Broken gets no more: OSError: disk full"):
        result = fit_trainer.unlearn([1])
    assert result.n_forget == 1
    assert callback.record.removed == [1]


def test_preflight_makes_no_folder_and_no_noise(tmp_path, capsys):
    logger = CSVLogger(tmp_path)
    _, fit_trainer, _, _ = with_bar()
    fit_trainer.loggers = [logger]
    capsys.readouterr()
    preflight(fit_trainer, [1])
    assert fit_trainer.loggers == [logger]
    assert not list(tmp_path.iterdir())
    assert "Unlearning" not in capsys.readouterr().out
