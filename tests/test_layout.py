"""The tests' own house: folders mirror the rooms, what several need is in `support`, skips are counted by reason."""

from __future__ import annotations

import ast
from pathlib import Path

import lm_eval_edit
from tests.conftest import ROOT
from tests.support.processes import python

TESTS = ROOT / "tests"
BESIDE = {"support", "golden", "oracle", "startup"}  # helpers, files of earlier releases, published deltas, `_startup`


def imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return found | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_folders_of_tests_are_rooms():
    package = Path(lm_eval_edit.__file__).parent
    folders = {file.parent.relative_to(TESTS) for file in TESTS.rglob("test_*.py")} - {Path()}
    beside = {folder for folder in folders if folder.parts[0] in BESIDE}
    assert not [str(folder) for folder in folders - beside if not (package / folder / "__init__.py").is_file()]


def test_no_test_module_is_imported_by_another():
    names = {
        file.relative_to(ROOT).as_posix(): [name for name in imports(file) if ".test_" in name]
        for file in TESTS.rglob("*.py")
    }
    assert not {file: found for file, found in names.items() if found}


def test_every_helper_says_what_it_is():
    silent = []
    for file in (TESTS / "support").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if file.name != "__init__.py" and not ast.get_docstring(tree):
            silent.append(file.name)
    assert not silent


def test_skips_are_counted_by_reason(tmp_path):
    text = "import pytest\n\n@pytest.mark.parametrize('n', range(7))\ndef test_it(n):\n    pytest.skip(f'no {n % 2}')\n"
    (tmp_path / "test_skips.py").write_text(text, encoding="utf-8")
    run = ("-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", tmp_path, "test_skips.py")
    done = python(*run, path=ROOT, cwd=tmp_path)
    assert "4 skipped: no 0\n3 skipped: no 1\n" in done.stdout, done.stdout + done.stderr
    listed = python(*run, "-rs", path=ROOT, cwd=tmp_path)
    assert "4 skipped: no 0" not in listed.stdout and "SKIPPED" in listed.stdout
