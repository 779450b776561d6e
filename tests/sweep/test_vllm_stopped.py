"""A sweep served by vLLM (a stand-in) that is stopped or killed goes on: no cell twice, none lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.support import stand_in_vllm
from tests.support.served_sweeps import answers, assert_same, cells, design_of

pytestmark = pytest.mark.usefixtures("tasks_at_hand")


def start(served_world: Path, out: Path, **env: str) -> subprocess.Popen:
    (out.parent / "design.yaml").write_text(yaml.safe_dump(design_of(served_world)))
    command = [
        sys.executable,
        "-m",
        "tests.support.stand_in_vllm",
        "sweep",
        str(out.parent / "design.yaml"),
        "-o",
        str(out),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(
        [*command, "--engine", "vllm", "--device", "cpu"], env=env, cwd=out.parent, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )  # fmt: skip


def stop_when(process: subprocess.Popen, pattern: str, out: Path, with_signal: int) -> str:
    """Send a signal as soon as a file is there; returns what was said."""
    deadline = time.monotonic() + 280
    while not any(out.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.send_signal(with_signal)
    return process.communicate(timeout=120)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "with_signal", "all_wait"),
    [
        (".serving/tiny/rome-facts-file_order/n00001/ready.json", signal.SIGKILL, False),  # while a row is edited
        ("tiny/rome-facts-file_order/n00001/cell.json", signal.SIGKILL, True),  # while adapters are served
        ("tiny/unedited/cell.json", signal.SIGINT, True),
    ],
)
def test_a_sweep_that_is_stopped_goes_on(served_world, local, tmp_path, pattern, with_signal, all_wait):
    out = tmp_path / "out"
    said = stop_when(start(served_world, out, **{stand_in_vllm.SLEEP: "0.5"}), pattern, out, with_signal)
    if with_signal == signal.SIGINT:
        assert "interrupted: every finished cell and every edit is kept in" in said and "Traceback" not in said
    there = {name: (out / name / "cell.json").stat().st_mtime_ns for name in cells(out)}
    waited = list(out.glob(".serving/**/ready.json"))
    again = start(served_world, out, **{stand_in_vllm.NOTES: str(tmp_path / "notes")})
    printed, said = again.communicate(timeout=280)
    assert again.returncode == 0, said[-3000:]
    assert f"{7 - len(there)} cells computed, {len(there)} kept" in printed
    assert {name: (out / name / "cell.json").stat().st_mtime_ns for name in there} == there
    assert answers(out).keys() == answers(local).keys() and not (out / ".serving").exists()
    for name, found in answers(out).items():
        assert_same(found, answers(local)[name])
    known = there.keys() | {file.parent.relative_to(out / ".serving").as_posix() for file in waited}
    assert len(known) == 7 or not all_wait
    if len(known) == 7:  # every edit had been made: no model was loaded to edit again
        assert "editing (" not in said
