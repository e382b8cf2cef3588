"""For the site: a notebook is a page, with the outputs that were committed in it.

A hook of mkdocs. It reads the notebook as the JSON that it is, so that building the
site runs nothing and needs no Jupyter.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_TERMINAL_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Notebook(File):
    """A file that becomes a page, though it does not end in .md."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take every notebook for a page, so that links to it lead there."""
    return Files(
        [
            _Notebook(
                file.src_uri,
                config.docs_dir,
                config.site_dir,
                config.use_directory_urls,
            )
            if file.src_uri.endswith(".ipynb")
            else file
            for file in files
        ]
    )


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """The notebook as markdown; other pages are read as always."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    path = Path(page.file.abs_src_path or "")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    where = f"*This page is the notebook `docs/{page.file.src_uri}` of the repository.*"
    title, *rest = [_cell(cell) for cell in cells]
    return "\n\n".join([title, where, *rest]) + "\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return source
    return "\n\n".join([_fenced("python", source), *map(_output, cell["outputs"])])


def _output(output: dict[str, Any]) -> str:
    """One output of a cell: what it printed, or what it shows."""
    if output["output_type"] == "stream":
        return _fenced("text", "".join(output["text"]))
    shown = {kind: "".join(part) for kind, part in output["data"].items()}
    if "text/html" in shown:  # one block of HTML ends at an empty line
        lines = [line for line in shown["text/html"].splitlines() if line.strip()]
        return '<div class="notebook-output">\n' + "\n".join(lines) + "\n</div>"
    if "image/png" in shown:
        image = shown["image/png"].replace("\n", "")
        return f'<img alt="figure" src="data:image/png;base64,{image}">'
    return _fenced("text", shown["text/plain"])


def _fenced(language: str, body: str) -> str:
    body = _TERMINAL_COLOUR.sub("", body).rstrip("\n")
    return f"````{language}\n{body}\n````"
