"""The installed console scripts, run in a process of their own, and what they write.

A module that imports this one is skipped where the package is not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(sys.executable).parent
if not (SCRIPTS / "lm-eval-edit").exists():
    pytest.skip("the package is not installed in this environment (make venv)", allow_module_level=True)


def lm_eval(*arguments: object, cwd: Path, program: str = "lm_eval", ok: bool = True) -> subprocess.CompletedProcess:
    """Run a console script in a folder that holds nothing of ours."""
    done = subprocess.run(
        [SCRIPTS / program, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done


def results_of(folder: Path) -> dict:
    """The one results file below a folder."""
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def samples_of(folder: Path, task: str) -> list[dict]:
    """A task's samples beside it."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]
