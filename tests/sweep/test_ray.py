"""A sweep as Ray tasks stores what a sweep in one process stores, also when a worker is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lm_eval_edit.sweep import checking, engine, ray_tasks
from lm_eval_edit.sweep.folder import COLLAPSED, SweepFolder
from lm_eval_edit.sweep.worker import Checkpoint
from tests.conftest import ROOT
from tests.support.processes import python
from tests.support.small_sweeps import small

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


@pytest.fixture
def two_nodes():
    """The address of a Ray cluster of two nodes, each with room for one task, started as if by somebody else."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield cluster.address
    cluster.shutdown()


def sweep_with_a_loss(out: Path, task: str, flags: tuple[str, ...], when: Callable[[], bool]) -> int:
    """Run the sweep with Ray and kill, once, a worker that runs `task` while `when` holds; returns how many cells were
    there when it died."""
    import psutil

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *SWEEP, "-o", str(out), "--engine", "ray", *flags]
    there = None
    with open(out.parent / "log", "w") as log, subprocess.Popen(command, env=env, cwd=ROOT, stderr=log) as process:
        deadline = time.monotonic() + 280
        while process.poll() is None and time.monotonic() < deadline:
            if there is None and when():
                # A task's worker has its name: a child of the sweep's own Ray, or of the cluster this test has started.
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if f"ray::{task}" in " ".join(child.cmdline()):
                            there = len(list(out.glob("demo/**/cell.json")))
                            os.kill(child.pid, signal.SIGKILL)
                            break
            time.sleep(0.05)
        if process.poll() is None:
            process.terminate()
    assert there is not None, f"no worker that runs {task} was seen"
    assert process.returncode == 0, (out.parent / "log").read_text()
    return there


def assert_same(found: dict[str, object], wanted: dict[str, object]) -> None:
    assert len([name for name in wanted if name.endswith("cell.json")]) == 5
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name] == wanted[name], name


@pytest.mark.slow
def test_a_worker_killed_between_two_edits(local, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "ray"
    # The first edit is stored: one worker is in the middle of a schedule, which its successor goes on with.
    sweep_with_a_loss(out, "edit", (), lambda: any(out.glob("demo/*/edits/ops/*.json")))
    assert_same(content(out), content(local))


@pytest.mark.slow
def test_a_worker_killed_while_it_evaluates_on_a_cluster_of_two_nodes(local, tmp_path, two_nodes):
    out = tmp_path / "ray"
    # The unedited cell is there and a schedule has been edited to its end: what is evaluated now replays its edits.
    edited = "demo/*/edits/ops/*19.json"
    there = sweep_with_a_loss(
        out,
        "evaluate",
        ("--address", two_nodes),
        lambda: (out / "demo/unedited/cell.json").exists() and any(out.glob(edited)),
    )
    assert 1 <= there < 5
    assert_same(content(out), content(local))


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


# ------------------------------------------------------------------------- what a worker does, without Ray around it


def job_of(checked: checking.Checked, run: str) -> ray_tasks.Job:
    root = str(Path(checked.folder.root).resolve())
    return ray_tasks.Job(run, checked.design, root, os.getcwd(), "cpu", 1)


def test_a_replay_that_is_not_finite_elsewhere_is_no_cell_of_the_unedited_model(tmp_path, monkeypatch):
    checked = checking.check(small(n_edits=[1], limit=1), SweepFolder(tmp_path))
    with engine.claimed(checked):
        row, job = checked.rows[0], job_of(checked, "finite")
        (_, reached), *_ = ray_tasks.edit(job, "demo", row.name, (1,), [1]).value
        # Another processor rounds otherwise, and there the same edits are not finite.
        monkeypatch.setattr(ray_tasks.Worker, "edit_to", lambda *_: Checkpoint(1, None, "not finite here", 0.0))
        answer = ray_tasks.evaluate(job, checked.edited(row)[0], (1,), reached)
    assert answer.value == COLLAPSED
    assert checked.folder.state(checked.edited(row)[0]) == (COLLAPSED, "not finite here")


def test_a_node_that_does_not_see_the_folder_says_so_and_writes_nothing(tmp_path):
    checked = checking.check(small(n_edits=[1]), SweepFolder(tmp_path / "only_here"))
    answer = ray_tasks.evaluate(job_of(checked, "blind"), checked.baseline(checked.design.models[0]))
    assert answer.fatal and "does not see" in answer.error and "file system that all nodes" in answer.error
    assert not any(tmp_path.iterdir())
