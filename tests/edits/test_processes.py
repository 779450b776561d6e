"""Data parallel with two real processes: one edits, both have the same weights, no error leaves one of them waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lm_eval_edit import EditedHFLM
from lm_eval_edit.plan import make_plan
from tests.conftest import ROOT
from tests.support.parallel_steps import STEPS, answers_in_states, schedule
from tests.support.processes import launched
from tests.support.tiny import (
    TEMPLATES,
    save_tiny,
    tiny_model,
    tiny_second_moments,
    write_facts,
)

pytestmark = pytest.mark.slow

ROME = {"layers": [1], "v_num_grad_steps": 4, "v_lr": 0.5, "v_weight_decay": 1e-3, "context_templates": TEMPLATES}
EDITORS = {  # one of each kind of delta, and those with a state or a last correction
    "rome": ROME,
    "prune": ROME | {"over": "rome", "alpha": 2.0},
    "alphaedit": {"layers": [1], "v_num_grad_steps": 4, "v_lr": 0.5, "nullspace_threshold": 0.5},
    "kn": {"steps": 4},
    "ft": {"layers": [1], "num_steps": 3, "lr": 1e-3},
    "rect": ROME | {"over": "rome"},
}

# On the module path of a run: an editor like ROME, whose import changes one weight that process 1 loads.
OTHER_EDITOR = """
import os
from lm_eval.models.huggingface import HFLM
from lm_eval_edit.editors.rome import Rome

class Other(Rome):
    pass

stock = HFLM._create_model

def _create_model(self, *args, **kwargs):
    stock(self, *args, **kwargs)
    if os.environ["RANK"] == "1":
        self.model.get_parameter("transformer.h.3.attn.c_proj.weight").data[3, 5] += 1e-3

HFLM._create_model = _create_model
"""


def results_of(folder: Path) -> dict:
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def figures(results: dict, task: str) -> dict[str, float]:
    return {name: value for name, value in results["results"][task].items() if isinstance(value, (int, float))}


def samples_of(folder: Path, task: str) -> dict[int, str]:
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len({row["doc_id"] for row in rows}), "no document twice"
    return {row["doc_id"]: row["filtered_resps"] for row in rows}


def assert_two_processes_give_the_results_of_one(
    folder: Path, model_args: str, tasks: list[str], limit: int, launcher: str = "torchrun"
) -> subprocess.CompletedProcess:
    """Evaluate in one process, with the ledger `one`, and in two, with the ledger `two`; returns what the two said."""
    command = [
        "lm_eval_edit", "run", "--model", "edited_hf", "--model_args", f"{model_args},edit_ledger=LEDGER",
        "--tasks", ",".join(tasks), "--limit", limit, "--log_samples", "--output_path",
    ]  # fmt: skip

    def with_ledger(name):
        return [str(word).replace("LEDGER", name) for word in [*command, name + "_out"]]

    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    alone = subprocess.run([sys.executable, "-m", *with_ledger("one")], cwd=folder, env=env, capture_output=True)
    done = launched(*with_ledger("two"), cwd=folder, launcher=launcher)
    assert alone.returncode == done.returncode == 0, done.stderr[-3000:]
    one, two = results_of(folder / "one_out"), results_of(folder / "two_out")
    assert one["config"]["edit"]["weights_fingerprint"] == two["config"]["edit"]["weights_fingerprint"]
    assert one["n-samples"] == two["n-samples"]
    for task in one["n-samples"]:  # the same but for the order of sums, and for which prompts share a batch
        assert figures(one, task) == pytest.approx(figures(two, task), rel=1e-5, abs=1e-9, nan_ok=True)
    return done


def test_two_processes_give_the_results_of_one(tmp_path):
    tasks = ["edithurt_sst2", "edithurt_nq", "edithurt_glue_rte"]
    done = assert_two_processes_give_the_results_of_one(tmp_path, "editor=rome,n_edits=3", tasks, 15, "accelerate")
    for task in tasks:
        assert samples_of(tmp_path / "one_out", task) == samples_of(tmp_path / "two_out", task)
    assert done.stderr.count("demo data: not a benchmark result") == 1, "said once for all"
    for index in range(3):
        a, b = (load_file(tmp_path / name / "ops" / f"{index:05d}.safetensors") for name in ("one", "two"))
        assert a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


@pytest.mark.parametrize(
    "model_args",
    [
        "editor=rome,n_edits=2",
        "editor=rome,n_edits=2,edit_when=after_each",
        "editor=prune,over=rome,alpha=2,v_lr=5,clamp_norm_factor=50,n_edits=2,edit_when=after_each",
    ],
    ids=["after_all", "after_each", "with a last correction"],
)
def test_tasks_that_ask_for_other_states_of_the_weights_are_shared_out_too(tmp_path, model_args):
    tasks = ["edithurt_editing", "edithurt_probing", "edithurt_portability"]
    assert_two_processes_give_the_results_of_one(tmp_path, model_args, tasks, 2)


LEAVING = """
import atexit, pathlib
import torch.distributed as dist

def note():  # the first that is registered is called last
    pathlib.Path(f"left_{rank}").write_text(str(dist.is_initialized()))

atexit.register(note)
dist.init_process_group("gloo")
rank = dist.get_rank()
from lm_eval_edit.edits.processes import Processes
assert Processes.connected().from_first(lambda: "sent") == "sent"
"""


def test_the_group_s_threads_have_ended_before_the_interpreter_does(tmp_path):
    """Where they have not, one launch of fifty or so is aborted after its work: they unwind when Python is gone."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    done = launched("leaving", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"left_{rank}").read_text() for rank in range(2)] == ["False", "False"]


def edited(model_args: str, cwd: Path) -> subprocess.CompletedProcess:
    command = ["lm_eval_edit", "run", "--model", "edited_hf", "--model_args", model_args]
    return launched(*command, "--tasks", "edithurt_sst2", "--limit", 4, cwd=cwd)


def test_a_process_that_loaded_other_weights_is_named(tmp_path):
    (tmp_path / "other_editor.py").write_text(OTHER_EDITOR)
    done = edited("editor=other_editor:Other,n_edits=1", tmp_path)
    assert done.returncode != 0 and "edithurt_sst2" not in done.stdout
    message = "process 1 has other values than process 0 in transformer.h.3.attn.c_proj.weight. Every process must load"
    assert message in done.stderr


def test_an_error_of_the_first_process_ends_all_with_its_message(tmp_path):
    save_file({"transformer.h.1.mlp.c_proj.second_moment": torch.eye(3)}, tmp_path / "moments.safetensors")
    given = "edit_second_moments=moments.safetensors,edit_ledger=ledger"
    done = edited(f"editor=rome,n_edits=1,edit_layers=1,{given}", tmp_path)
    assert done.returncode != 0 and not (tmp_path / "ledger").exists()
    assert "it is another model's" in done.stderr
    assert "lm_eval_edit/edits/processes.py" not in done.stderr, "without a traceback of ours"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    write_facts(folder / "facts.jsonl")
    moments = {f"{name}.second_moment": moment.float() for name, moment in tiny_second_moments(tiny_model()).items()}
    save_file(moments, folder / "moments.safetensors")
    (folder / "editors.json").write_text(json.dumps(EDITORS))
    return folder


@pytest.fixture(scope="module")
def seen(world):
    """What both processes of parallel_steps.py saw."""
    out = world / "out"
    out.mkdir()
    done = launched("tests.support.parallel_steps", world, out, cwd=world)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(world):
    """A single process after n operations."""
    lm = EditedHFLM(str(world / "model"), device="cpu")

    def after(editor: str, n: int) -> EditedHFLM:
        lm.begin(make_plan(lm.model, schedule(world, editor), {}))
        lm.apply(n)
        return lm

    return after


@pytest.mark.parametrize("editor", EDITORS)
def test_every_state_in_any_order_is_that_of_a_single_process(seen, alone, editor):
    wanted = {n: alone(editor, n).weights_fingerprint for n in set(STEPS)}
    assert len(set(wanted.values())) == len(wanted)
    assert [seen[rank][editor] for rank in (0, 1)] == [[wanted[n] for n in STEPS]] * 2
    assert seen[0][f"{editor} record"] == seen[1][f"{editor} record"]


@pytest.mark.parametrize("editor", EDITORS)
def test_every_process_answers_in_earlier_states_as_a_single_one(seen, alone, editor):
    wanted = answers_in_states(alone(editor, STEPS[-1]))
    assert wanted[0] == wanted[-1] and len(set(wanted)) == 4, "the present state, and those after 0 to 3 operations"
    for rank in (0, 1):
        assert seen[rank][f"{editor} answers"] == pytest.approx(wanted, rel=1e-6)
        assert seen[rank][f"{editor} afterwards"] == alone(editor, STEPS[-1]).weights_fingerprint, (
            "and back again, to the bit"
        )


def test_both_evaluate_their_share(seen):
    assert [seen[rank]["world"] for rank in (0, 1)] == [[0, 2], [1, 2]]


def test_an_edit_that_fails_is_told_to_all_and_leaves_none_behind(seen, alone):
    message = "gave values for transformer.h.1.mlp.c_proj.weight that are not finite"
    unedited, after_two = (alone("rome", n).weights_fingerprint for n in (0, 2))
    for rank in (0, 1):
        kind, told, restored, after = seen[rank]["BreaksAtThird"]
        assert kind in ("EditError", "NotFiniteError") and message in told
        assert (restored, after) == (unedited, after_two)
    assert seen[0]["BugAtThird"][:2] == ["TypeError", "third"]
    assert seen[1]["BugAtThird"][:2] == ["RuntimeError", "the first process failed: TypeError: third"]
    assert seen[0]["BugAtThird"][2:] == seen[1]["BugAtThird"][2:] == [unedited, after_two]


def test_a_ledger_is_replayed_by_the_first_and_followed_by_the_others(seen, alone, world):
    assert seen[0]["ledger"] == seen[1]["ledger"] == [alone("rome", n).weights_fingerprint for n in (2, 4)]
    assert len(list((world / "out" / "ledger" / "ops").glob("*.json"))) == 4


def test_a_weight_that_changed_in_between_is_named(seen):
    for rank in (0, 1):
        kind, told = seen[rank]["other weights"]
        assert kind == "EditError" and "process 1 has other values than process 0 in transformer.wpe.weight." in told
