"""The notebook runs from its first cell to its last, and prints what it shows."""

import contextlib
import io
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def cells():
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_its_cells_print_what_they_show(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exact = 0
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        (shown,) = cell["outputs"]
        assert cell["execution_count"] == number and printed.getvalue()
        # A text that is drawn may differ between processors, whose sums round differently.
        if "varies" not in cell["metadata"].get("tags", []):
            assert printed.getvalue() == "".join(shown["text"]), f"cell {number}"
            exact += 1
    assert exact == 5 and len(cells) == 8
    assert {"copy", "original"} == {path.name for path in tmp_path.iterdir()}
