"""The README's code runs, its commands name what exists, examples do what they say."""

import re
import runpy
from pathlib import Path

import pytest

from lightning_unlearn.certificate import Grade
from tests.plugin.nets import digits

ROOT = Path(__file__).parent.parent


def test_readme_code_runs(capsys):
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len(blocks) == 2
    namespace = {"train_set": digits(300)}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["result"].certificate.grade is Grade.CERTIFIED
    assert Path("clean.ckpt").exists()
    assert "CERTIFIED" in capsys.readouterr().out


def test_readme_opens_with_two_commands():
    commands = re.findall(r"```bash\n(.*?)\n```", (ROOT / "README.md").read_text())
    assert commands[0].endswith("python examples/quickstart.py")
    assert commands[1].endswith("python -m pytest")
    assert all('pip install -e ".[' in command for command in commands[:2])


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda p: p.name
)
def test_links_between_documents_exist(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_no_file_names_a_machine_of_ours():
    for path in ROOT.rglob("*"):
        if (
            path.suffix in {".py", ".md", ".toml", ".yaml"}
            and ".venv" not in path.parts
        ):
            text = path.read_text()
            assert "/work" + "/" not in text, path
            assert "index" + "-url" not in text, path


def test_quickstart(capsys):
    namespace = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    result, after = namespace["main"]()
    assert result.certificate.grade is Grade.CERTIFIED
    assert after[2] > 0.93
    out = capsys.readouterr().out
    assert out.startswith(
        "CERTIFIED: indistinguishable from retraining without these 50"
    )
    assert "retrained without" in out


@pytest.mark.slow
def test_mnist_mlp(capsys, real_data):
    namespace = runpy.run_path(str(ROOT / "examples" / "mnist_mlp.py"))
    result, rows = namespace["main"](epochs=3)
    assert result.certificate.grade is Grade.VACUOUS
    assert result.certificate.sensitivity == 40.0
    accuracy = dict(rows)
    assert accuracy["Newton step, no noise"][2] > 0.9
    assert accuracy["step and noise"][2] < 0.3  # what epsilon = 1 costs here
    out = capsys.readouterr().out
    assert out.startswith("VACUOUS")
    assert "Delta/(2C) = 1" in out
    assert "relu" in out
