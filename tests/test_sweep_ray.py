"""A sweep as Ray tasks stores what a sweep in one process stores, also when a worker is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers import python

SWEEP = ("-m", "lm_eval_edit", "sweep", "--pretrained", "demo", "--editors", "rome", "memit", "--n_edits", "0,5,20",
         "--tasks", "edithurt_rte", "--limit", "4", "-a", "v_num_grad_steps=3")  # fmt: skip
#: Timings and what is measured in seconds; where the ledger lies; facts about the machine.
VARYING = {"date", "start_time", "end_time", "total_evaluation_time_seconds", "pretty_env_info", "seconds",
           "seconds_per_edit",
           "edit_ledger", "directory", "ledger"}  # fmt: skip


def plain(value):
    """`value` without what two runs of the same sweep differ in."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in VARYING}
    if isinstance(value, str):  # the harness writes some functions of a task as Python shows them, address and all
        return re.sub(r" at 0x[0-9a-f]+>", ">", value)
    return [plain(item) for item in value] if isinstance(value, list) else value


def content(root: Path) -> dict[str, object]:
    """Every cell's results and samples, by folder and the file's name without its date."""
    found: dict[str, object] = {}
    for file in sorted(root.glob("*/**/n[0-9]*/*")) + sorted(root.glob("*/unedited/*")):
        name = f"{file.parent.relative_to(root)}/{file.name.partition('_20')[0]}"
        if file.name.startswith("results_"):
            found[name] = plain(json.loads(file.read_text(encoding="utf-8")))
        elif file.name.startswith("samples_"):
            found[name] = file.read_bytes()
        elif file.name == "cell.json":
            record = json.loads(file.read_text(encoding="utf-8"))
            found[name] = {key: record[key] for key in ("status", "weights_fingerprint", "perplexity")}
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "local"
    done = python(*SWEEP, "-o", folder, path=ROOT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_ray_stores_what_one_process_stores_also_when_a_worker_is_killed(local, tmp_path):
    pytest.importorskip("ray")
    import psutil

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *SWEEP, "-o", str(tmp_path / "ray"), "--engine", "ray"]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, env=env, cwd=ROOT, stderr=log) as process:
        killed = False
        deadline = time.monotonic() + 280
        while process.poll() is None and time.monotonic() < deadline:
            # The first edit is stored: one worker is in the middle of a schedule, which its successor goes on with.
            if not killed and list((tmp_path / "ray").glob("demo/*/edits/ops/*.json")):
                for child in psutil.Process(process.pid).children(recursive=True):
                    if "ray::edit" in " ".join(child.cmdline()):
                        os.kill(child.pid, signal.SIGKILL)
                        killed = True
                        break
            time.sleep(0.05)
        if process.poll() is None:
            process.terminate()
    assert killed, "no editing worker was seen"
    assert process.returncode == 0, (tmp_path / "log").read_text()
    found, wanted = content(tmp_path / "ray"), content(local)
    assert len([name for name in wanted if name.endswith("cell.json")]) == 5
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name] == wanted[name], name


def test_without_ray_the_error_names_the_extra(tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('not here')\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = python(*SWEEP, "-o", tmp_path / "out", "--engine", "ray", path=path, cwd=tmp_path)
    assert done.returncode == 1 and "pip install 'lm-eval-edit[ray]'" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--address", "auto"), "--address: only with --engine ray"),
        (("--engine", "ray", "--device", "cuda:1"), "--device cuda:1"),
        (("--engine", "ray", "--gpus_per_task", "-1"), "at least 0"),
    ],
)
def test_wrong_flags(flags, said, tmp_path, capsys):
    from lm_eval_edit.cli import main

    if "ray" in flags:
        pytest.importorskip("ray")
    assert main([*SWEEP[2:], "-o", str(tmp_path / "out"), *flags]) == 1
    assert said in capsys.readouterr().err
