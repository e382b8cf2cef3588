"""The notebooks run from top to bottom, and show what a run of them shows.

``LIGHTNING_UNLEARN_SNAPSHOTS=write`` keeps the outputs of this run in them.
"""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def cells(path):
    return json.loads(path.read_text())["cells"]


def shown(cell):
    """What a cell shows, but for numbers and spaces: they differ from run to run."""
    texts = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":  # of which one print may be two
            texts += output["text"]
        else:
            html = "".join(output["data"]["text/html"])
            texts.append(re.search(r"<strong>(.*?)</strong>", html).group(1))
    return re.sub(r"\d[\d.,]*(e-?\d+)?%?", "", "".join(texts)).split()


def test_there_are_three():
    names = ["audit-the-certificate", "delete-a-user", "which-guarantee"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_as_it_was_run(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert any(cell["outputs"] for cell in code)
    text = path.read_text()
    assert "/work" + "/" not in text
    assert "/tmp/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_of_a_notebook_exist(path):
    for cell in cells(path):
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)\)", "".join(cell["source"])):
                assert (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra dev")
    nbformat = pytest.importorskip("nbformat", reason="comes with nbclient")
    notebook = nbformat.read(path, as_version=4)
    before = [shown(cell) for cell in notebook.cells]
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
    )
    if os.environ.get("LIGHTNING_UNLEARN_SNAPSHOTS") == "write":
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it was run
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        return
    assert [shown(cell) for cell in notebook.cells] == before
