"""A sweep edited as Ray tasks and served by an actor on each node: what comes of it, also when something is killed.

vLLM is a stand-in here (`tests.support.stand_in_vllm`), and the nodes are processes of one machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from lm_eval_edit.cli import main
from lm_eval_edit.errors import UserError
from lm_eval_edit.harness import left_over
from lm_eval_edit.sweep import engine, ray_engine, ray_serving, serving, vllm_engine
from lm_eval_edit.sweep.prepared import WaitingRoom
from lm_eval_edit.sweep.preparing import Preparer
from lm_eval_edit.sweep.ray_engine import RETRIES, Resources
from tests.conftest import ROOT
from tests.support import stand_in_vllm
from tests.support.ray_here import RayHere
from tests.support.served_sweeps import answers, cells, checked_sweep, design_of, likelihoods

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("tasks_at_hand", "vllm")


@pytest.fixture(scope="module")
def here(served_world, tmp_path_factory) -> Path:
    """The same sweep by `--engine vllm`."""
    root = tmp_path_factory.mktemp("here") / "sweep"
    how = serving.Serving({}, "cpu", stand_in_vllm.VERSION)
    assert not vllm_engine.run_sweep(checked_sweep(served_world, root), how, progress=False).failed
    return root


@pytest.fixture(scope="module")
def two_nodes():
    from tests.support.stand_in_on_ray import nodes_of_ray

    with nodes_of_ray(2) as address:
        yield address


def start(served_world: Path, out: Path, address: str, **env: str) -> subprocess.Popen:
    (out.parent / "design.yaml").write_text(yaml.safe_dump(design_of(served_world)))
    command = [sys.executable, "-m", "tests.support.stand_in_on_ray", address, "sweep", str(out.parent / "design.yaml")]
    flags = ["-o", str(out), "--engine", "ray", "--serve", "vllm", "--cpus_per_task", "1", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), stand_in_vllm.NOTES: str(out.parent / "notes"), **env}
    return subprocess.Popen(
        [*command, *flags], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(pattern: str, out: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 280
    while not any(out.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.02)


def workers(name: str) -> list[tuple[int, str]]:
    """(number, title) of the processes of Ray's workers that this test's cluster has for a task or an actor."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if (title := " ".join(child.cmdline())).startswith(f"ray::{name}"):
                found.append((child.pid, title))
    return found


def kill_one_of_two_actors(process: subprocess.Popen) -> None:
    """Kill an actor that serves a cell, while there is one on each node."""
    deadline = time.monotonic() + 280
    while True:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        actors = workers("EngineActor")
        busy = [number for number, title in actors if "EngineActor.serve" in title]
        if len(actors) == 2 and busy:
            os.kill(busy[0], signal.SIGKILL)
            return
        time.sleep(0.05)


def assert_same(out: Path, here: Path) -> None:
    """All cells, log-probabilities within an engine's noise and texts; the same records but for what takes time."""
    found, wanted = answers(out), answers(here)
    assert found.keys() == wanted.keys() and len(found) == 7
    for cell in wanted:
        for task in wanted[cell]:
            if task == "toy_says":
                assert found[cell][task] == wanted[cell][task]
            else:
                assert likelihoods(found[cell], task) == pytest.approx(likelihoods(wanted[cell], task), abs=1e-3)
    told, records = cells(out), cells(here)
    for cell in records:
        for name in ("status", "weights_fingerprint", "perplexity", "collapsed"):
            assert told[cell][name] == records[cell][name], (cell, name)
        engines = [{k: v for k, v in each[cell]["engine"].items() if k != "check"} for each in (told, records)]
        assert engines[0] == engines[1]
    assert not (out / ".serving").exists() and not (out / ".engines").exists()


@pytest.mark.slow
def test_cells_are_those_of_one_machine_also_when_an_actor_is_lost(served_world, here, two_nodes, tmp_path):
    out = tmp_path / "out"
    process = start(served_world, out, two_nodes, **{stand_in_vllm.SLEEP: "0.5"})
    kill_one_of_two_actors(process)
    printed, said = process.communicate(timeout=280)
    assert process.returncode == 0, said[-3000:]
    assert "7 cells computed, 0 kept" in printed and "is lost" in said
    assert_same(out, here)
    engines = (tmp_path / "notes").read_text().splitlines()
    assert all("held=0" in line for line in engines)
    # At most one for the unedited weights in each actor, of which there were three; each checkpoint had one, or two
    # where it was being served when the actor was lost.
    assert 1 <= len([line for line in engines if line.startswith("model ")]) <= 3
    assert 2 <= len([line for line in engines if line.startswith("checkpoint ")]) <= 3


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(served_world, here, two_nodes, tmp_path):
    out = tmp_path / "out"
    process = start(served_world, out, two_nodes, **{stand_in_vllm.SLEEP: "0.5"})
    wait_for("tiny/rome-facts-file_order/n00001/cell.json", out, process)
    process.kill()
    process.communicate()
    while workers("EngineActor"):  # Ray ends the actors of a driver that is gone
        time.sleep(0.1)
    there = {name: (out / name / "cell.json").stat().st_mtime_ns for name in cells(out)}
    again = start(served_world, out, two_nodes)
    printed, said = again.communicate(timeout=280)
    assert again.returncode == 0, said[-3000:]
    assert f"{7 - len(there)} cells computed, {len(there)} kept" in printed and len(there) < 7
    assert {name: (out / name / "cell.json").stat().st_mtime_ns for name in there} == there
    assert_same(out, here)


# --------------------------------------------------------------------------------------------- what may go wrong inside

ONE_CELL_EACH = {"n_edits": [1], "tasks": ["toy_likely"]}
CPU = Resources(cpus=1, device="cpu")
UNEDITED, ROME, FT = "tiny/unedited", "tiny/rome-facts-file_order/n00001", "tiny/ft-facts-file_order/n00001"


AT_ONCE = "tiny/ft-facts-file_order-at_once"


def parts_of(ray: RayHere) -> list[list[str]]:
    """The cells of each editing task."""
    return [[cell.path for cell in task[-1]] for task in ray.tasks]


def run_here(served_world: Path, root: Path, ray: RayHere, resources=CPU, arguments=(), **changes):
    """The sweep of three cells, or with changes, with all that Ray's nodes do done in this process."""
    checked, how = checked_sweep(served_world, root, **ONE_CELL_EACH | changes), serving.Serving(dict(arguments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "find_ray", lambda: ray)
        patch.setattr(ray_engine, "connected", lambda *_: contextlib.nullcontext())
        return ray_serving.run_sweep(checked, resources, how, progress=False)


def test_an_engine_that_does_not_start_on_one_node_costs_no_cell(served_world, tmp_path, monkeypatch):
    ranks = iter([()])  # at the first start none will do, then those of vLLM
    began = stand_in_vllm.LLM.__init__

    def start(self, *args, **more):
        monkeypatch.setattr(stand_in_vllm, "RANKS", next(ranks, (1,)))
        began(self, *args, **more)

    monkeypatch.setattr(stand_in_vllm.LLM, "__init__", start)
    ray = RayHere()
    outcome = run_here(served_world, tmp_path / "sweep", ray)
    assert outcome.statuses == dict.fromkeys((UNEDITED, ROME, FT), "done") and ray.started == ["a", "b"]
    assert not (tmp_path / "sweep/.serving").exists()


def test_an_engine_that_starts_nowhere_fails_its_cells_and_no_others_and_nothing_is_edited_again(
    served_world, tmp_path
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in_vllm, "RANKS", ())
        outcome = run_here(served_world, tmp_path / "sweep", RayHere())
    assert outcome.statuses == {UNEDITED: "failed", ROME: "failed", FT: "done"}
    assert "max_lora_rank 1 is none of" in cells(tmp_path / "sweep")[ROME]["reason"]
    outcome = run_here(served_world, tmp_path / "sweep", RayHere())  # two engines, and no model to be edited
    assert (outcome.statuses, outcome.kept, outcome.loads) == ({UNEDITED: "done", ROME: "done"}, 1, 2)


def test_actors_that_are_lost_are_replaced_and_their_cells_served_by_others(served_world, tmp_path):
    losses = iter([True, True])
    ray = RayHere(lambda node, method: method == "serve" and next(losses, False))
    assert not run_here(served_world, tmp_path / "sweep", ray).failed
    assert sorted(ray.started) == ["a", "a", "b", "b"]


@pytest.mark.parametrize("call", [1, 2])  # while its answers are checked, while its tasks are asked
def test_an_engine_that_dies_in_its_actor_costs_no_cell(served_world, tmp_path, call):
    ray = RayHere()
    with stand_in_vllm.dying(ROME, call, most=RETRIES) as deaths:
        outcome = run_here(served_world, tmp_path / "sweep", ray)
    assert len(deaths) == RETRIES and outcome.statuses == dict.fromkeys((UNEDITED, ROME, FT), "done")
    assert ray.started == ["a", "b"]  # the actors are there still


def test_a_cell_that_every_engine_dies_of_costs_no_other(served_world, tmp_path):
    with stand_in_vllm.dying(ROME, 1, most=RETRIES + 1):
        outcome = run_here(served_world, tmp_path / "sweep", RayHere())
    assert outcome.statuses == {UNEDITED: "done", ROME: "failed", FT: "done"}
    assert "does not answer any more" in cells(tmp_path / "sweep")[ROME]["reason"]


def test_nodes_that_lose_every_actor_end(served_world, tmp_path):
    ray = RayHere(lambda node, method: method == "serve")
    outcome = run_here(served_world, tmp_path / "sweep", ray)
    assert sorted(outcome.failed) == sorted((UNEDITED, ROME, FT))
    assert "died" in cells(tmp_path / "sweep")[FT]["reason"] and len(ray.started) <= 2 * (1 + RETRIES)
    assert (
        run_here(served_world, tmp_path / "sweep", RayHere()).loads == 2 + 1
    )  # engines alone: two nodes, a checkpoint


def test_a_node_without_vllm_is_told(served_world, tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval_edit.sweep.ray_actors.served.vllm_version", lambda: 1 / 0)
    outcome = run_here(served_world, tmp_path / "sweep", RayHere())
    assert len(outcome.failed) == 3 and "ZeroDivisionError" in cells(tmp_path / "sweep")[ROME]["reason"]


def test_a_rows_own_facts_are_asked_by_a_task_that_edits_the_row(served_world, tmp_path):
    """On a GPU, where Ray gives every task a process of its own, another task would load the model for them alone."""
    ft = {"editor": "ft", "label": "ft", "num_steps": 2, "edit_batch_size": "all"}
    changes = {"editors": [ft], "n_edits": [1, 2], "tasks": ["toy_likely", "edithurt_efficacy"]}
    ray = RayHere()
    assert not run_here(served_world, tmp_path / "sweep", ray, **changes).failed
    assert parts_of(ray) == [["tiny/unedited"], [f"{AT_ONCE}/n00000", f"{AT_ONCE}/n00001"], [f"{AT_ONCE}/n00002"]]
    for name, there in (("n00002", [["n00000", "n00002"]]), ("n00000", [["n00000"]])):
        for lost in {"n00000", name}:
            shutil.rmtree(tmp_path / "sweep" / AT_ONCE / lost)
        ray = RayHere()
        assert not run_here(served_world, tmp_path / "sweep", ray, **changes).failed
        assert parts_of(ray) == [[f"{AT_ONCE}/{cell}" for cell in part] for part in there]


def test_what_a_lost_worker_had_done_is_not_done_again(served_world, tmp_path, monkeypatch):
    asked, before = [], Preparer.before
    monkeypatch.setattr(Preparer, "before", lambda self, cell: asked.append(cell.path) or before(self, cell))
    changes = {"tasks": ["toy_likely", "edithurt_efficacy"]}
    outcome = run_here(served_world, tmp_path / "sweep", RayHere(again=True), **changes)
    own = ["tiny/rome-facts-file_order/n00000", "tiny/ft-facts-file_order/n00000"]
    assert outcome.statuses == dict.fromkeys((UNEDITED, ROME, FT, *own), "done") and asked == own


# ------------------------------------------------------------------------------------------------- what is known before


@pytest.mark.parametrize(("gpus", "fits"), [(3.0, False), (4.0, True)])
def test_an_actor_has_the_gpus_that_its_engine_splits_the_model_over(served_world, tmp_path, gpus, fits):
    arguments = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    checked, ray = checked_sweep(served_world, tmp_path / "sweep", **ONE_CELL_EACH), RayHere(gpus=gpus)
    outcome, room = engine.Outcome(), WaitingRoom(checked.folder)

    def begin():
        return ray_serving._Run(ray, checked, Resources(cpus=1), outcome, None, serving.Serving(arguments), room)

    if fits:
        assert begin().gpus == 4
    else:
        with pytest.raises(UserError, match="an engine of vLLM that needs 1 CPUs and 4 GPUs fits no node"):
            begin()


def test_the_dry_run_says_that_nodes_serve(served_world, tmp_path, capsys):
    (tmp_path / "design.yaml").write_text(yaml.safe_dump(design_of(served_world)))
    flags = ["--engine", "ray", "--serve", "vllm", "--tensor_parallel_size", "2", "--dry_run", "--device_rate", "h100"]
    flags += ["--engine_args", "pipeline_parallel_size=3"]
    assert main(["sweep", str(tmp_path / "design.yaml"), *flags]) == 0
    said = capsys.readouterr().out
    assert "each node that has room for it starts one engine of the model" in said
    assert "at least 6 GPUs of one node (tensor_parallel_size=2, pipeline_parallel_size=3)" in said
    assert "whether the nodes have GPUs is asked when it runs" in said
    assert "one engine: unedited, 2 LoRA adapters (max_lora_rank 8; tiny/rome-facts-file_order/n00001, " in said
    assert main(["sweep", str(tmp_path / "design.yaml"), *flags, "--gpus_per_task", "1"]) == 0
    said = capsys.readouterr().out
    assert "whether the nodes" not in said and "LoRA adapters" not in said and "on a GPU is for float16" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--serve", "vllm"], ["--serve vllm: only with --engine ray", "--engine vllm"]),
        (["--engine", "vllm", "--serve", "vllm"], ["--serve vllm: only with --engine ray"]),
        (["--engine", "vllm", "--address", "auto"], ["--address: only with --engine ray", "--engine ray --serve vllm"]),
        (["--engine", "ray", "--engine_args", "enforce_eager=True"], ["or with --engine ray --serve vllm"]),
        (
            ["--engine", "ray", "--serve", "vllm", "--device", "cuda:1", "--data_parallel_size", "2",
             "--gpus_per_task", "0.5", "--engine_args", "enforce_eagr=True,pipeline_parallel_size=0"],
            ["--device cuda:1", "--data_parallel_size 2 with --engine ray", "--gpus_per_task 0.5 with --serve vllm",
             "Did you mean 'enforce_eager'?", "--engine_args pipeline_parallel_size=0: want a whole number"],
        ),
    ],
)  # fmt: skip
def test_wrong_flags_are_told_at_once(flags, said, tmp_path, capsys):
    args = ["sweep", "--pretrained", "demo", "--editors", "rome", "--n_edits", "1", "-o", str(tmp_path / "out")]
    assert main([*args, *flags]) == 1
    found = capsys.readouterr().err
    assert all(text in found for text in said), found
    assert not (tmp_path / "out").exists()


def test_a_design_that_cannot_be_served_is_told_before_ray_is_asked(served_world, tmp_path, capsys):
    (tmp_path / "design.yaml").write_text(yaml.safe_dump(design_of(served_world, tasks=["edithurt_efficacy"])))
    flags = ["-o", str(tmp_path / "out"), "--engine", "ray", "--serve", "vllm", "--address", "nowhere:1"]
    assert main(["sweep", str(tmp_path / "design.yaml"), *flags]) == 1
    assert "all about the rows' own facts" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_engines_of_other_nodes_are_left_alone_and_those_of_killed_runs_ended(tmp_path):
    left = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(3)]
    try:
        names = ("old-node", "new-node", "new-other")
        for process, name in zip(left, names, strict=True):
            (tmp_path / name).mkdir()
            born = psutil.Process(process.pid).create_time()
            content = {"host": left_over.socket.gethostname(), "processes": [[process.pid, born]]}
            left_over.write_json(tmp_path / name / left_over.PROCESSES, content)
        (tmp_path / "far").mkdir()
        left_over.write_json(tmp_path / "far" / left_over.PROCESSES, {"host": "elsewhere", "processes": [[1, 1.0]]})
        at_work = lambda name: name.startswith("new") and name != "new-node"  # noqa: E731
        assert left_over.end_all_left_over(tmp_path, at_work) == 2
        assert [process.poll() is None for process in left] == [False, False, True]
        assert sorted(each.name for each in tmp_path.iterdir()) == ["far", "new-other"]
    finally:
        for process in left:
            process.kill()
