"""The paper's experiments and the real jobs: tiny, and what of them is committed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "benchmarks" / "paper"
JOBS = ROOT / "benchmarks" / "jobs"
RESULTS = ROOT / "benchmarks" / "results"
COMMITTED = sorted(RESULTS.glob("paper-*.json"))


def run(script, *arguments, folder=PAPER, timeout=300):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    return subprocess.run(
        [sys.executable, folder / script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
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


@pytest.mark.slow
def test_a_real_job_is_done_in_every_way(tmp_path):
    for name in ("matplotlib", "sklearn", "dp_accounting"):
        pytest.importorskip(name)
    asked = ["people", "--quick", "--results", tmp_path]
    done = run("run.py", *asked, folder=JOBS, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "jobs.json").read_text())
    grades = {name.split(" | ")[1]: cell.get("grade") for name, cell in found.items()}
    assert grades["certified"] == grades["private"] == "certified"
    assert grades["perceptron"] == "exact"
    assert found["people | certified | 0"]["epsilon"] == 1.0
    assert grades["trees"] is None
    assert {"audit certified", "audit private", "audit not unlearned"} <= set(grades)
    page = (tmp_path / "jobs.md").read_text()
    assert page.count("\n| table |") == 5
    again = run("run.py", *asked, folder=JOBS)  # all of it is known
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout == page


def test_the_page_of_the_jobs_says_what_their_numbers_say(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "jobs.json").write_bytes((RESULTS / "jobs.json").read_bytes())
    done = run("run.py", "--draw", "--results", tmp_path, folder=JOBS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "jobs.md").read_text() == (RESULTS / "jobs.md").read_text()
    assert (RESULTS / "jobs.png").exists()
