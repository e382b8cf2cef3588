"""What the command line and the pages about it show."""

import re
import shlex
import textwrap

import pytest

from lightning_unlearn.cli import LightningCLI
from tests.helpers.cli_project import ROOT, fit, refused, run, shell, verb
from tests.helpers.snapshots import snapshot


def test_every_option_of_the_callback_has_help(project, capsys):
    import inspect

    from lightning_unlearn import UnlearningCallback

    with pytest.raises(SystemExit):
        run("unlearn", "--help")
    text = capsys.readouterr().out
    group = text[text.index("Makes a Trainer's model") : text.index("Base class for")]
    names = list(inspect.signature(UnlearningCallback.__init__).parameters)[1:]
    for name in names:
        found = re.search(rf"--unlearning.{name} .*?(?=\n  --|\Z)", group, re.S)
        assert found, name
        assert len(found[0].split()) > 6, found[0]  # more than its name and type


def test_help_reads_well(project, capsys):
    with pytest.raises(SystemExit):
        run("unlearn", "--help")
    text = capsys.readouterr().out
    snapshot("cli_help", text[text.rindex("Remove the influence") :])
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    snapshot("cli_subcommands", text[text.index("Available subcommands") :])


def test_a_certified_request_reads_well(project, capsys):
    fit()
    capsys.readouterr()
    verb("unlearn", "--save_to", "clean.ckpt")
    out = capsys.readouterr().out
    out = re.sub(r"forgotten: .*run.ckpt", "forgotten: (folder)/run.ckpt", out)
    snapshot("cli_certified", out)


def test_a_refused_request_reads_well(project, capsys):
    fit()
    error = refused("already exists|which exists", "unlearn", "--save_to", "run.ckpt",
                    capsys=capsys)  # fmt: skip
    snapshot("cli_refused", textwrap.fill(error, 80) + "\n")


def commands_in(name):
    """The arguments of every ``python train.py`` a page shows."""
    lines = (ROOT / name).read_text().splitlines()
    shown = [line for line in lines if line.startswith("python train.py ")]
    return [shlex.split(line)[1:] for line in shown]


@pytest.mark.slow
def test_the_commands_of_the_page_on_ones_own_project_run(project):
    shown = commands_in("docs/in-your-project.md")
    assert [command[1] for command in shown] == ["fit", "preflight", "unlearn"]
    for command in shown:
        found = shell(*command, "--trainer.enable_progress_bar=false")
    assert found.stdout.startswith("CERTIFIED")
    assert "wrote clean.ckpt, clean.certificate.json, internal.html" in found.stdout


def test_other_pages_commands_parse(project, monkeypatch):
    class ParsedError(Exception):
        pass

    def stop(self):
        raise ParsedError

    monkeypatch.setattr(LightningCLI, "instantiate_trainer", stop)
    for command in commands_in("docs/deletion-request.md"):
        with pytest.raises(ParsedError):
            run(*command[1:], "--debug")
