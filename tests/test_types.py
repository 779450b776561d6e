"""The settings of the type checker: strict where edits are made, kept and judged, and no excuse that covers everything.

`make types` runs it, in CI too.
"""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="tomllib is in Python from 3.11 on")
PACKAGE = ROOT / "lm_eval_edit"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]


@pytest.mark.parametrize("room", ["comparison", "editors", "edits", "facts", "moments", "weights"])
def test_a_room_is_checked_strictly(room):
    strict = [each for each in SETTINGS["overrides"] if f"lm_eval_edit.{room}.*" in each["module"]]
    assert any(each.get("disallow_untyped_defs") and each.get("warn_return_any") for each in strict)
    assert (PACKAGE / room).is_dir()


def test_untyped_libraries_are_named_one_by_one():
    assert "ignore_missing_imports" not in SETTINGS and "ignore_errors" not in SETTINGS
    for each in SETTINGS["overrides"]:
        assert not each.get("ignore_errors")
        if each.get("ignore_missing_imports"):
            assert all(re.fullmatch(r"\w+\.\*", module) and "lm_eval_edit" not in module for module in each["module"])


def test_an_exception_names_its_error_and_its_reason():
    for file in PACKAGE.rglob("*.py"):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[\w-]+\]", line), f"{file}:{number + 1}"
                reason = re.search(r"ignore\[[\w-]+\]  # \S", line) or lines[number - 1].strip().startswith("# ")
                assert reason, f"{file}:{number + 1}"
            assert "mypy: " not in line, f"{file}:{number + 1}"


def test_users_of_the_package_get_its_types():
    assert (PACKAGE / "py.typed").is_file()
