"""The worked example of CONTRIBUTING.md, taken off the page: an editor the stock command runs, and its own test."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest

from lm_eval_edit._startup import _lm_eval_edit_autoload as autoload
from tests.conftest import ROOT
from tests.support.processes import python

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's Python blocks, each in the file that its first line names."""
    folder = tmp_path_factory.mktemp("example")
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["least_change.py", "test_least_change.py"]
    for name, text in blocks:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_its_own_test_passes(folder):
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", path=f"{folder}:{ROOT}", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_its_own_test_can_fail(folder, tmp_path):
    text = (folder / "least_change.py").read_text(encoding="utf-8")
    wrong = text.replace("key[:, None]", "(key + key.roll(1))[:, None]")  # also maps the key, with more change
    assert wrong != text
    (tmp_path / "least_change.py").write_text(wrong.replace("len(self.layers) > 1", "False"), encoding="utf-8")
    shutil.copy(folder / "test_least_change.py", tmp_path)
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", path=f"{tmp_path}:{ROOT}", cwd=tmp_path)
    assert "2 failed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_stock_command_runs_it(folder):
    (command,) = re.findall(r"^PYTHONPATH=\. (lm_eval .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    _, *arguments = shlex.split(command.replace("\\\n", " "))
    # The start-up file by hand, as tests must not depend on what is installed beside them.
    program = f"import sys; sys.path.insert(0, {str(autoload.__file__).rpartition('/')[0]!r}); "
    program += "import _lm_eval_edit_autoload as a; a.install(); sys.path.pop(0); "
    program += "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    done = python(
        "-c", program, *arguments, "--output_path", folder / "out",
        path=f"{folder}:{ROOT}", cwd=folder, LM_EVAL_EDIT_AUTOLOAD="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (results,) = (folder / "out").rglob("results_*.json")
    edit = json.loads(results.read_text(encoding="utf-8"))["config"]["edit"]
    assert edit["editor"] == "least_change:LeastChange" and edit["n_edits"] == 3
    assert edit["layers"] == [0] and edit["guards"]["weights_changed"]
