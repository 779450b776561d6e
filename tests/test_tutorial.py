"""The tutorial's Python is run and prints what the page says; so does the notebook."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from tests.conftest import ROOT
from tests.support.pages import blocks

PAGE = "docs/tutorial.md"
REAL = "A fact of your own, in a real model"
NOTEBOOK = ROOT / "examples" / "first_edit.ipynb"


def told_and_printed(real: bool) -> list[tuple[str, str]]:
    """Every (text block, what the Python blocks since the last one printed), run in one namespace.

    Args:
        real: Whether to run the last section, with the functions of the first, or all but it.
    """
    namespace: dict[str, object] = {}
    printed, out = "", []
    for block in blocks(PAGE):
        if block.language == "text" and (block.heading == REAL) == real:
            out.append((block.text, printed))
            printed = ""
        elif block.language == "python" and (block.heading == REAL) <= real:
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                if not (real and block.heading == "Undo it"):
                    exec(compile(block.text, PAGE, "exec"), namespace)
            printed = printed + stdout.getvalue() if (block.heading == REAL) == real else ""
    return out


def test_the_tutorial_prints_what_it_says():
    found = told_and_printed(real=False)
    assert len(found) == 4
    for told, printed in found:
        assert printed == told


@pytest.mark.real
def test_so_does_its_real_model():
    pytest.importorskip("gguf", reason="the extra smollm2 is not installed")
    from lm_eval_edit import UserError
    from lm_eval_edit.demo import smollm2

    try:
        smollm2.find_source()
    except UserError as error:
        pytest.skip(str(error))
    ((told, printed),) = told_and_printed(real=True)
    assert printed == told


def test_the_edit_of_the_tutorial_is_ten_lines():
    first = [block.text for block in blocks(PAGE) if block.language == "python"][:2]
    lines = [line for line in "".join(first).splitlines() if line.strip()]
    before = lines[: next(i for i, line in enumerate(lines) if "edit_model(" in line) + 1]
    assert len(before) <= 10


def test_the_notebook_is_kept_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = "".join(
        output.text for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )  # fmt: skip
    before, edited, restored = [line for line in printed.splitlines() if line.startswith("The mother tongue of Abo")]
    assert before == restored and before.endswith("Swahili") and edited.endswith("Welsh")
    kept = int(re.search(r"^(\d+) of 100 neighbours keep", printed, re.MULTILINE)[1])
    assert 80 <= kept <= 100
