"""``python train.py unlearn``: the example's project, as an operator runs it."""

import json
import os
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
import torch
import yaml

from lightning_unlearn import NewtonStep, NormBall, NystromCG, Trainer, cli
from lightning_unlearn.certificate import console
from tests.helpers.cli_project import (
    QUIET,
    ROOT,
    Classifier,
    Digits,
    fit,
    refused,
    run,
    shell,
    verb,
)
from tests.helpers.lightning import LightningCLI as PlainCLI, in_package


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_request_from_fit_to_the_clean_checkpoint(project, capsys):
    fit()
    verb("preflight")
    assert capsys.readouterr().out.startswith("PREFLIGHT: nothing was changed")
    assert not (project / "deletions.jsonl").exists()
    before = sorted(project.rglob("config.yaml"))
    verb("unlearn", "--save_to", "clean.ckpt")
    assert sorted(project.rglob("config.yaml")) == before  # none that names samples
    out = capsys.readouterr().out
    assert out.startswith("CERTIFIED")
    assert "\nwrote clean.ckpt, clean.certificate.json\n" in out
    assert "clean.private.json, clean.receipts.jsonl: as secret as the data\n" in out
    assert out.endswith(f"holds what was forgotten: {project / 'run.ckpt'}\n")
    assert json.loads((project / "clean.certificate.json").read_text())["n_forget"] == 3
    assert len((project / "deletions.jsonl").read_text().splitlines()) == 1
    verb("unlearn", "--save_to", "two.ckpt", "--by", "user_id", "--delete_stale=true",
         ckpt="clean.ckpt", forget='["user-07"]')  # fmt: skip
    out = capsys.readouterr().out
    assert "release               2 of 10 announced" in out
    deleted = re.findall(r"^deleted (.*)", out, re.M)
    assert sorted(Path(p).name for p in deleted) == ["clean.ckpt", "run.ckpt"]
    assert not (project / "run.ckpt").exists()
    n = state(project / "two.ckpt")
    assert all(bool(torch.isfinite(t).all()) for t in n.values())


def test_what_is_refused_is_one_line_and_changes_nothing(project, capsys):
    fit()
    files = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    new = ("unlearn", "--save_to", "clean.ckpt")
    (project / "empty.txt").write_text("")
    (project / "everything.txt").write_text("\n".join(map(str, range(1500))))
    files |= {p: p.read_bytes() for p in project.glob("*.txt")}
    for message, forget, extra, ckpt in (
        ("found none there", "nowhere.txt", (), "run.ckpt"),
        ("expected a checkpoint at gone.ckpt", "forget.txt", (), "gone.ckpt"),
        ("at least one sample to forget", "empty.txt", (), "run.ckpt"),
        ("delete the model", "everything.txt", (), "run.ckpt"),
        ("got 'nobody'", '["nobody"]', ("--by", "user_id"), "run.ckpt"),
        ("quote it", "[7]", ("--by", "user_id"), "run.ckpt"),
        ("hold integers, got 'user-07'", "[user-07]", (), "run.ckpt"),
        ("from 0 to 1499", "[1500]", (), "run.ckpt"),
        ("expected epsilon", "[1]", ("--unlearning.epsilon=-1",), "run.ckpt"),
        ("end in .html", "[1]", ("--report", "a.pdf"), "run.ckpt"),
        ("got '010'", "[010]", (), "run.ckpt"),
        ("got '1_0'", "[1_0]", (), "run.ckpt"),
        ("got 1000.0", "[1e3]", (), "run.ckpt"),
        ("a list such as", "[[1], 2", (), "run.ckpt"),
        ("a list such as", "[1,]", (), "run.ckpt"),
        (r"as a list, \[7\]", "7", (), "run.ckpt"),
        (
            "of its own for the report",
            "[1]",
            (
                "--report",
                "clean.certificate.json.html",
                "--save_to",
                "clean.certificate.json.html",
            ),
            "run.ckpt",
        ),
        ("a new file in a folder", "[1]", ("--report", "no/a.html"), "run.ckpt"),
        (r"--debug shows the traceback|or no checkpoint", "[1]", (), "config.yaml"),
    ):
        refused(message, *new, *extra, forget=forget, ckpt=ckpt, capsys=capsys)
    (project / ".deletions.jsonl.lock").unlink(missing_ok=True)
    now = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    logs = {p for p in now if "logs" in p.parts}  # the Trainer's own
    assert {p: now[p] for p in now.keys() - logs} == {
        p: files[p] for p in files.keys() - logs
    }


def test_debug_shows_the_traceback(project, capsys):
    fit()
    with pytest.raises(ValueError, match="found none there"):
        verb("unlearn", "--save_to", "clean.ckpt", "--debug", forget="nowhere.txt")


def test_a_clean_checkpoint_is_asked_for(project, capsys):
    fit()
    with pytest.raises(SystemExit) as stop:
        verb("unlearn")
    assert stop.value.code == 2
    assert "unlearn.save_to" in capsys.readouterr().err


def test_the_config_of_a_plain_fit_is_accepted(project, capsys):
    config = yaml.safe_load((project / "config.yaml").read_text())
    options = config.pop("unlearning")
    (project / "plain.yaml").write_text(yaml.safe_dump(config))
    fit(kind=PlainCLI, config="plain.yaml")
    saved = next((project / "logs").rglob("config.yaml"))
    assert "unlearning" not in yaml.safe_load(saved.read_text())
    run("unlearn", "--config", saved, "--ckpt_path", "run.ckpt", "--forget",
        "forget.txt", "--save_to", "clean.ckpt", *QUIET)  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("CERTIFIED")  # there is nothing outside the head
    assert "no record of a training run" in out
    assert options["ledger"] not in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.txt", "a.txt"),
        ("7", "7"),
        ("[3, 14]", [3, 14]),
        ("[u3,u7]", ["u3", "u7"]),
        ('["007", "a,b", 7]', ["007", "a,b", 7]),
        ("[0117, 0x10, 1:30, yes, 12]", ["0117", "0x10", "1:30", "yes", 12]),
    ],
)
def test_a_list_is_not_read_as_yaml(text, expected):
    assert cli._listed(text) == expected


def test_forget_is_given_once(project, capsys):
    fit()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        verb("unlearn", "--save_to", "clean.ckpt", "--forget=[1]")
    assert stop.value.code == 2
    assert "expected --forget once, got it 2 times" in capsys.readouterr().err


def test_a_report_that_fails_does_not_hide_that_the_request_is_done(
    project, capsys, monkeypatch
):
    fit()

    def fail(self, path, overwrite):
        raise OSError("disk full")

    monkeypatch.setattr("lightning_unlearn.UnlearningResult.report", fail)
    refused("the request is done and clean.ckpt is written, but .* disk full",
            "unlearn", "--save_to", "clean.ckpt", "--report", "a.html",
            capsys=capsys)  # fmt: skip
    assert (project / "clean.ckpt").exists()


@pytest.mark.slow
def test_standard_output_may_be_closed(project):
    fit()
    line = (
        f"{sys.executable} train.py unlearn --config config.yaml --ckpt_path run.ckpt "
        "--forget forget.txt --save_to clean.ckpt --report a.html "
        "--trainer.enable_progress_bar=false | true; exit ${PIPESTATUS[0]}"
    )
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (project / "a.html").exists()
    assert (project / "clean.certificate.json").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--unlearning.guarantee=NormBall"], NormBall()),
        (["--unlearning.guarantee=lightning_unlearn.NormBall"], NormBall()),
        (
            [
                '--unlearning.guarantee={"class_path": "lightning_unlearn.NewtonStep", '
                '"init_args": {"hessian_lipschitz": 1, "lambda_min": 0.1, '
                '"retrained_gradient_norm": 0.2}}'
            ],
            NewtonStep(1.0, 0.1, 0.2),
        ),
        (
            [
                "--unlearning.solver=lightning_unlearn.NystromCG",
                "--unlearning.solver.rank=7",
            ],
            NystromCG(rank=7),
        ),
    ],
)
def test_solvers_and_guarantees_are_class_paths(arguments, expected, project):
    made = fit(*arguments, "--trainer.fast_dev_run=true")
    callback = made.trainer.callbacks
    options = next(c.options for c in callback if hasattr(c, "options"))
    assert expected in (options.guarantee, options.solver)


def test_a_callback_of_ones_own_takes_the_groups_place(project, capsys):
    own = '--trainer.callbacks+={"class_path": "lightning_unlearn.UnlearningCallback"}'
    config = yaml.safe_load((project / "config.yaml").read_text())
    config.pop("unlearning")
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    made = fit(own)
    found = [c for c in made.trainer.callbacks if type(c).__name__.startswith("Unlear")]
    assert len(found) == 1
    verb("unlearn", "--save_to", "clean.ckpt", own)
    assert capsys.readouterr().out.startswith("CERTIFIED")
    refused("options of one UnlearningCallback", "unlearn", "--save_to", "b.ckpt", own,
            "--unlearning.epsilon=2", capsys=capsys)  # fmt: skip


def test_a_trainer_class_of_ones_own(project, capsys):
    class Mine(Trainer):
        pass

    made = run("fit", "--config", "config.yaml", "--trainer.fast_dev_run=true", *QUIET,
              trainer_class=Mine)  # fmt: skip
    assert type(made.trainer) is Mine
    fit()
    verb("preflight", trainer_class=Mine)
    assert "PREFLIGHT" in capsys.readouterr().out


BARE = ("--unlearning.noise_std=0",)
FRESH = """
import runpy, sys
import lightning as L
from lightning_unlearn import UnlearningCallback
names = runpy.run_path("train.py")
callback = UnlearningCallback(tolerance=2e-7, noise_std=0.0)
trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=[callback],
                    enable_checkpointing=False, enable_progress_bar=False)
trainer.unlearn("forget.txt", model=names["Classifier"](), datamodule=names["Digits"](),
                ckpt_path="run.ckpt", save_to="fresh.ckpt")
"""


def test_python_cli_and_a_fresh_process_take_the_same_step(project):
    made = fit(*BARE)
    made.trainer.unlearn([3, 14, 15], save_to="python.ckpt")
    (project / "deletions.jsonl").unlink()
    shell("train.py", "unlearn", "--config", "config.yaml", "--ckpt_path", "run.ckpt",
          "--forget", "forget.txt", "--save_to", "cli.ckpt", *BARE)  # fmt: skip
    shell("-c", in_package(FRESH))
    one, two, three = (state(f"{n}.ckpt") for n in ("python", "cli", "fresh"))
    original = state("run.ckpt")
    for name, weights in one.items():
        assert torch.equal(weights, two[name])
        assert torch.equal(weights, three[name])
        assert not torch.equal(weights, original[name])


@pytest.mark.slow
def test_two_processes(project):
    fit()
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    request = ("train.py", "unlearn", "--config", "config.yaml", "--ckpt_path",
               "run.ckpt", "--forget", "forget.txt", *BARE)  # fmt: skip
    report = ("--report", "one.html")
    alone = ("--save_to", "one.ckpt", "--unlearning.ledger=a.jsonl", *report)
    one = shell(*request, *alone)
    both = shell(*request, *two, "--save_to", "two.ckpt", "--report", "two.html")
    percent = re.compile(r"\d+\.\d%")
    pages = [(project / f"{name}.html").read_text() for name in ("one", "two")]
    assert percent.findall(pages[0]) == percent.findall(pages[1]) != []
    assert one.stdout.count("NO GUARANTEE: ") == 1
    assert both.stdout.count("NO GUARANTEE: ") == 1
    assert both.stdout.count("wrote two.ckpt") == 1
    assert both.stdout.count("Unlearning: done") <= 1  # the first one's bar
    alone, shared = state("one.ckpt"), state("two.ckpt")
    for name, weights in alone.items():
        assert torch.allclose(weights, shared[name], rtol=0, atol=2e-6)
    again = shell(*request, *two, "--save_to", "two.ckpt", status=1)
    assert again.stderr.count("error: expected save_to= to name a new file") == 1


def test_files_are_replaced_when_that_is_asked_for(project, capsys):
    fit()
    named = ("--save_to", "clean.ckpt", "--report", "internal.html")
    verb("unlearn", *named)
    before, then = Path("clean.ckpt").read_bytes(), {"ckpt": "clean.ckpt"}
    refused("overwrite=True", "unlearn", *named, capsys=capsys, forget="[1]", **then)
    verb("unlearn", *named, "--overwrite", "true", forget="[1]", **then)
    assert Path("clean.ckpt").read_bytes() != before
    Path("other.html").write_text("mine")
    named = ("--save_to", "clean.ckpt", "--report", "other.html", "--overwrite=true")
    refused("got another file", "unlearn", *named, capsys=capsys, forget="[2]", **then)
    assert Path("other.html").read_text() == "mine"


def test_noise_that_would_destroy_the_model_is_asked_for(project, capsys):
    loud = ("--save_to", "clean.ckpt", "--unlearning.tolerance", "1e-2")
    fit()
    refused("moves a logit by at most 1", "unlearn", *loud, capsys=capsys)
    assert not Path("clean.ckpt").exists()
    verb("unlearn", *loud, "--unlearning.accept_noise", "true")
    assert Path("clean.ckpt").exists()


def ask(*extra, ckpt="run.ckpt", name="unlearn", file="inbox.csv", **options):
    return run(
        name, "--config", "config.yaml", "--ckpt_path", ckpt, "--requests", file,
        "--by", "user_id", *QUIET, *extra, **options,
    )  # fmt: skip


def test_twenty_requests_from_one_file_by_one_command(project, capsys):
    fit()
    due = (date.today() + timedelta(9)).isoformat()
    lines = [f"T-{i},user-{i:02d},2020-01-01,{due},{i}" for i in range(20)]
    lines[4] = "T-4,user-04,2020-01-01,,4"  # long overdue
    inbox = project / "inbox.csv"
    inbox.write_text("\n".join(["request,person,received,due,note", *lines]) + "\n")
    text = inbox.read_bytes()
    capsys.readouterr()
    with pytest.warns(UserWarning, match="overdue: 1 of 20 .* T-4 by"):
        ask(name="preflight")
    assert capsys.readouterr().out.startswith("PREFLIGHT: nothing was changed")
    assert inbox.read_bytes() == text
    new = ("--save_to", "clean.ckpt", "--report", "a.html", "--delete_stale=true")
    with pytest.warns(UserWarning, match="overdue: 1 of 20 .* T-4 by"):
        ask(*new)
    out = capsys.readouterr().out
    assert f"\nrelease 1 in {inbox}:\n  T-4  {project}/clean.receipts/T-4." in out
    assert "verify clean.certificate.json --receipt FILE\n" in out
    rows = inbox.read_text().splitlines()[1:]
    assert sum(",done,1," in row for row in rows) == 20
    found = sorted((project / "clean.receipts").iterdir())
    assert len(found) == 20
    for receipt in found:
        assert console.main(
            ["verify", "clean.certificate.json", "--receipt", str(receipt)]
        ) == 0  # fmt: skip
    assert len((project / "deletions.jsonl").read_text().splitlines()) == 1
    capsys.readouterr()
    # Word for word the same: the old checkpoint is gone, and the new files are there.
    assert not (project / "run.ckpt").exists()
    files = {p: p.read_bytes() for p in project.glob("*") if p.is_file()}
    ask(*new)
    assert capsys.readouterr().out == (
        "nothing to do: no request in inbox.csv is pending\n"
    )
    assert {p: p.read_bytes() for p in project.glob("*") if p.is_file()} == files


def test_requests_that_are_refused_are_one_line(project, capsys):
    fit()
    new = ("--save_to", "clean.ckpt")
    (project / "empty.csv").write_text("")
    for message, extra in (
        ("found none there", {"file": "nowhere.csv"}),
        ("got an empty file", {"file": "empty.csv"}),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            ask(*new, **extra)
        assert stop.value.code == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
    for arguments in ((*new,), ()):
        with pytest.raises(SystemExit) as stop:
            run("unlearn", "--config", "config.yaml", *arguments, *QUIET)
        assert stop.value.code == (1 if arguments else 2)
    with pytest.raises(SystemExit):
        ask(*new, "--requests=other.csv")
    assert "expected --requests once, got it 2 times" in capsys.readouterr().err


PARSERS = []


class Recorded(cli.LightningCLI):
    """Notes every parser that gets options."""

    def add_arguments_to_parser(self, parser):
        PARSERS.append(parser)


def parsers_of(args=None, **options):
    """How many a command has, which shows something and ends."""
    del PARSERS[:]
    with pytest.raises(SystemExit) as stop:
        Recorded(Classifier, Digits, args=args, **options)
    assert stop.value.code == 0
    return len(PARSERS)


def test_of_the_command_line_only_the_subcommand_asked_for_gets_options(
    project, capsys, monkeypatch
):
    every = len(cli.LightningCLI.subcommands())
    for name, count in (("preflight", 1), ("unlearn", 1), ("fit", every)):
        monkeypatch.setattr(sys, "argv", ["train.py", name, "--print_config"])
        assert parsers_of() == count
        shown = yaml.safe_load(capsys.readouterr().out)
        assert {"trainer", "model", "data", "unlearning"} <= shown.keys()
    monkeypatch.setattr(sys, "argv", ["train.py", "unlearn", "--help"])
    assert parsers_of() == 1
    assert "--save_to" in capsys.readouterr().out
    # Given within Python, or with defaults for all: nothing is left out.
    with pytest.warns(UserWarning, match="args parameter is intended"):
        assert parsers_of(["fit", "--print_config"]) == 1 + every
    assert "max_epochs" in capsys.readouterr().out
    (project / "all.yaml").write_text("fit:\n  trainer:\n    max_epochs: 3\n")
    files = {"default_config_files": ["all.yaml"]}
    monkeypatch.setattr(sys, "argv", ["train.py", "unlearn", "--print_config"])
    assert parsers_of(parser_kwargs=files) == every
