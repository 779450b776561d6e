"""What several test files need: a fresh interpreter, and a task small enough to read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launched(*arguments: object, cwd: Path, launcher: str = "torchrun") -> subprocess.CompletedProcess:
    """Run a module in two processes, by torchrun or by accelerate."""
    starters = {
        "torchrun": ["torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port()],
        "accelerate": [
            "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", free_port(),
        ],
    }  # fmt: skip
    command = [sys.executable, "-m", *starters[launcher], "-m", *arguments]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(list(map(str, command)), env=env, cwd=cwd, capture_output=True, text=True, timeout=240)
