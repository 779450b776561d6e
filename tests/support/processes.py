"""What several test files need: a fresh interpreter, and a task small enough to read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOY_TASK = """\
# Add one to a number. A second sentence
# that nobody needs.
#
# Notes.
task: {name}
custom_dataset: !function {function}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match}}]
"""


def python(*args: object, path: Path | str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    """Run a fresh interpreter that finds its modules in `path` before anything installed."""
    # Not our own shim of the environment the tests run in: a test that needs one loads the one in this checkout.
    env = {**os.environ, "PYTHONPATH": str(path), "LM_EVAL_EDIT_AUTOLOAD": "0", **env}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, env=env, cwd=cwd or path or None, capture_output=True, text=True, timeout=300)
