"""The paper's experiments: on tiny subsets, and what of them is committed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "benchmarks" / "paper"
RESULTS = ROOT / "benchmarks" / "results"
COMMITTED = sorted(RESULTS.glob("paper-*.json"))


def run(script, *arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    return subprocess.run(
        [sys.executable, PAPER / script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def needs(kind):
    folder = Path(os.environ.get("LIGHTNING_UNLEARN_DATA", "nowhere"))
    if not (folder / kind).is_dir():
        pytest.skip(f"LIGHTNING_UNLEARN_DATA names no folder with {kind}")
    pytest.importorskip("matplotlib")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "pictures"),
    [
        ("mlp", "mnist", {"f1", "time", "requests", "sweeps", "distance"}),
        ("allcnn", "cifar10", {"f1", "time", "distance"}),
        ("resnet18", "cifar10", {"f1", "time", "distance"}),
    ],
)
def test_every_part_runs_and_resumes(tmp_path, model, kind, pictures):
    needs(kind)
    asked = ["--quick", "--model", model, "--seeds", 0, "--cache", tmp_path / "cache"]
    done = run("run.py", *asked, "--results", tmp_path, "--draw")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / f"paper-{model}.json").read_text())
    rows = found["seeds"]["0"]["rows"]
    assert {"original", "retrained", "retrained again", "Newton step"} <= set(rows)
    for name, row in rows.items():
        assert {"a", "b", "c", "d", "g"} <= set(row), name
        assert not [part for part in row.values() if "error" in part], name
    assert rows["step, epsilon 1"]["d"]["grade"] == "vacuous"
    assert rows["Newton step"]["d"]["grade"] == "none"
    drawn = {p.stem.rsplit("-", 1)[1] for p in tmp_path.glob("*.png")}
    assert drawn == pictures
    again = run("run.py", *asked)  # all of it is known
    assert "original" not in again.stdout


def test_an_other_setting_does_not_mix_with_what_is_cached(tmp_path):
    needs("mnist")
    (tmp_path / "mnist-mlp-quick").mkdir()
    (tmp_path / "mnist-mlp-quick" / "setting.json").write_text("{}")
    done = run("run.py", "--quick", "--seeds", "--cache", tmp_path)
    assert done.returncode
    assert "of another setting" in done.stderr


@pytest.mark.parametrize("file", COMMITTED, ids=lambda f: f.stem)
def test_the_committed_page_says_what_the_committed_numbers_say(file):
    pytest.importorskip("matplotlib")
    done = run("draw.py", file)
    assert done.returncode == 0, done.stderr[-2000:]
    page = file.with_suffix(".md").read_text()
    assert done.stdout == page
    for picture in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (RESULTS / picture).exists()
    assert len(json.loads(file.read_text())["seeds"]) >= 3
