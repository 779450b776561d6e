"""The libraries under us: the ranges declared, and the main command without a word about anything deprecated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT

pytestmark = pytest.mark.libraries

PROJECT = (ROOT / "pyproject.toml").read_text()
CPU_BUILD = {"torch"}  # pinned above its bound: older releases bring CUDA


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(block: str) -> list[Requirement]:
    """The strings of the list `block = [...]` in pyproject.toml."""
    (found,) = re.findall(rf"^{block} = \[(.*?)^\]", PROJECT, flags=re.MULTILINE | re.DOTALL)
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', found)]


def pinned(file: str) -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    assert all([each.operator for each in pin.specifier] == ["=="] for pin in pins)
    return {canonical(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}


def lower_bounds() -> dict[str, Version]:
    bounds = {}
    for requirement in requirements("dependencies"):
        (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
        bounds[canonical(requirement.name)] = Version(bound)
    return bounds


def test_the_oldest_versions_are_the_declared_lower_bounds():
    bounds, oldest = lower_bounds(), pinned("constraints-oldest.txt")
    assert oldest.keys() == bounds.keys()
    assert {name: oldest[name] for name in bounds.keys() - CPU_BUILD} == {
        name: bounds[name] for name in bounds.keys() - CPU_BUILD
    }
    assert all(oldest[name] >= bounds[name] for name in CPU_BUILD)


def test_the_pinned_set_lies_within_the_ranges():
    pins = pinned("constraints.txt")
    missing = lower_bounds().keys() - pins.keys()
    assert not missing - {"filelock", "rich"} and all(pins[name] >= bound for name, bound in lower_bounds().items())


def test_importing_warns_of_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import lm_eval_edit"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_main_command_names_nothing_deprecated(tmp_path):
    program = Path(sys.executable).parent / "lm_eval"
    if not program.exists():
        pytest.skip("the package is not installed in this environment (make venv)")
    done = subprocess.run(
        [program, "--model", "edited_hf", "--model_args", "editor=rome,n_edits=3", "--tasks", "edithurt_suite"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\|edithurt_suite *\|.*\|score", done.stdout)
    said = [line for line in done.stderr.splitlines() if re.search("deprecat|FutureWarning", line, re.IGNORECASE)]
    assert not said
