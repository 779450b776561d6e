"""A sweep served by vLLM: which cell is served how, what is refused before, what comes of it, also when it is stopped.

vLLM is a stand-in here that applies real adapters (`tests.support.stand_in_vllm`); `test_vllm_real.py` runs vLLM.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lm_eval_edit.cli import main
from lm_eval_edit.comparison.compare import Settings, compare_runs
from lm_eval_edit.comparison.other_engines import noise_floor, warnings
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.export import commands
from lm_eval_edit.harness import left_over
from lm_eval_edit.harness import served as harness
from lm_eval_edit.harness.engines import Engine, engine_of
from lm_eval_edit.sweep import engine, routes, serving, vllm_engine
from tests.support import stand_in_vllm
from tests.support.served_sweeps import answers, assert_same, cells, checked_sweep, design_of, likelihoods
from tests.support.tiny import FACTS

pytestmark = pytest.mark.usefixtures("tasks_at_hand")


def serve(checked, notes: Path | None = None, **arguments):
    with pytest.MonkeyPatch.context() as patch:
        if notes is not None:
            patch.setenv(stand_in_vllm.NOTES, str(notes))
        how = serving.Serving(arguments, "cpu", stand_in_vllm.VERSION)
        return vllm_engine.run_sweep(checked, how, progress=False)


@pytest.fixture(scope="module")
def served(vllm, served_world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("served") / "sweep"
    outcome = serve(checked_sweep(served_world, root), notes=root.parent / "notes", enforce_eager=True)
    assert not outcome.failed and len(outcome.statuses) == 7 and outcome.loads == 1 + 1 + 2
    return root


# ----------------------------------------------------------------------------------------------------- what comes of it


def test_served_cells_say_what_the_cells_of_this_process_say(local, served):
    found, wanted = answers(served), answers(local)
    assert found.keys() == wanted.keys() and len(found) == 7
    for cell in found:
        assert_same(found[cell], wanted[cell])
    told = [tuple(likelihoods(found[cell])) for cell in found if "toy_likely" in found[cell]]
    assert len(set(told)) == 5  # the unedited model and four edited ones: none was served for another


def test_results_are_those_of_the_other_engines_but_for_the_engine(local, served):
    for cell in ("tiny/rome-facts-file_order/n00002", "tiny/ft-facts-file_order/n00001", "tiny/unedited"):
        one, other = (load_run(root / cell).results for root in (served, local))
        assert one["results"].keys() == other["results"].keys() and one["configs"].keys() == other["configs"].keys()
        assert one["task_hashes"] == other["task_hashes"] and one["task_hashes"].keys() == one["results"].keys()
        for task, figures in other["results"].items():
            numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
            found = {name: one["results"][task][name] for name in numbers}
            assert numbers and found == pytest.approx(numbers, abs=1e-3, nan_ok=True)
        plain = {"seconds_per_edit", "ledger", "details"}
        edits = [{k: v for k, v in each["config"]["edit"].items() if k not in plain} for each in (one, other)]
        assert edits[0] == edits[1]
        records = [json.loads((root / cell / "cell.json").read_text()) for root in (served, local)]
        for name in ("weights_fingerprint", "perplexity", "status"):
            assert records[0][name] == records[1][name]


def test_cells_name_their_engine_and_how_they_were_served(local, served):
    told = {name: record["engine"] for name, record in cells(served).items()}
    assert told["tiny/unedited"]["served"] == "base"
    rome, ft = (told[f"tiny/{name}-facts-file_order/n00002"] for name in ("rome", "ft"))
    assert rome["served"] == "adapter" and rome["adapter_rank"] == 2 and ft["served"] == "checkpoint"
    for each in (rome, ft, told["tiny/unedited"]):
        assert (each["name"], each["version"], each["dtype"]) == ("vllm", stand_in_vllm.VERSION, "float32")
        assert each["arguments"] == {"enforce_eager": True}
    for each in (rome, ft):
        assert each["in_process"] == ["edithurt_efficacy"]
        assert each["check"]["difference"] < 1e-3 and each["check"]["effect"] > 0.1
    assert told["tiny/rome-facts-file_order/n00000"]["name"] == "transformers"
    assert {record["engine"]["name"] for record in cells(local).values()} == {"transformers"}
    run = load_run(served / "tiny/rome-facts-file_order/n00002")
    assert engine_of(run.results) == Engine("vllm", stand_in_vllm.VERSION, "float32")
    assert engine_of(run.results, "edithurt_efficacy").name == "transformers"


def test_one_engine_serves_the_unedited_model_and_all_adapters_and_no_edited_model_is_held_meanwhile(served):
    notes = (served.parent / "notes").read_text().splitlines()
    assert notes == [
        "model float32 rank=8 held=0 [('enforce_eager', True), ('max_loras', 1)]",
        *["checkpoint float32 rank=0 held=0 [('enforce_eager', True)]"] * 2,
    ]


def test_nothing_waits_in_the_end_and_nothing_is_done_twice(served_world, served):
    assert not (served / ".serving").exists()
    outcome = serve(checked_sweep(served_world, served))
    assert (outcome.kept, outcome.statuses, outcome.loads) == (7, {}, 0)


@pytest.mark.parametrize("ends", [False, True])
def test_how_outputs_ended_is_known_from_their_tokens(vllm, served_world, tmp_path, ends):
    model = AutoModelForCausalLM.from_pretrained(served_world / "model")
    tokenizer = AutoTokenizer.from_pretrained(served_world / "model")
    prompt = tokenizer(FACTS[0].text, return_tensors="pt").input_ids
    new = model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :].tolist()
    assert new[0] != new[1] and len(new) == 3 and tokenizer.eos_token_id not in new
    folder = shutil.copytree(served_world / "model", tmp_path / "model")
    if ends:  # another token that ends outputs, which the tokenizer knows nothing of
        GenerationConfig(eos_token_id=[tokenizer.eos_token_id, new[1]]).save_pretrained(folder)
    lm = harness.start(str(folder), "float32", {}, {}, None, tmp_path)
    how = {"until": ["."], "do_sample": False, "max_gen_toks": 3}
    (said,) = lm.generate_until([Instance("generate_until", {}, (FACTS[0].text, how), 0)], disable_tqdm=True)
    harness.stop(lm, tmp_path)
    assert (said.known, said.ended, said.edited) == ("exact", ends, False)
    assert said == tokenizer.decode(new[: 1 if ends else 3])
    assert said.decoded == f" {tokenizer.decode(new[: 2 if ends else 3])}"  # behind the prompt


# --------------------------------------------------------------------------------------------- what may go wrong inside


def test_an_engine_that_ignores_adapters_is_found_out(vllm, served_world, tmp_path):
    changes = {"editors": [design_of(served_world)["editors"][0]], "n_edits": [1], "tasks": ["toy_likely"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(stand_in_vllm.IGNORE, "1")
        outcome = serve(checked_sweep(served_world, tmp_path / "sweep", **changes))
    assert outcome.failed == ["tiny/rome-facts-file_order/n00001"]
    record = cells(tmp_path / "sweep")["tiny/rome-facts-file_order/n00001"]
    assert record["status"] == "failed" and "as if the adapter were ignored" in record["reason"]
    # What had been edited still waits: the second try edits nothing.
    outcome = serve(checked_sweep(served_world, tmp_path / "sweep", **changes))
    assert not outcome.failed and outcome.loads == 1 and outcome.kept == 1


def test_an_engine_that_does_not_start_fails_its_cells_and_no_others(vllm, served_world, tmp_path):
    changes = {"n_edits": [1], "tasks": ["toy_likely"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in_vllm, "RANKS", ())
        outcome = serve(checked_sweep(served_world, tmp_path / "sweep", **changes))
    assert sorted(outcome.failed) == ["tiny/rome-facts-file_order/n00001", "tiny/unedited"]
    assert outcome.statuses["tiny/ft-facts-file_order/n00001"] == "done"
    assert "max_lora_rank 1 is none of" in cells(tmp_path / "sweep")["tiny/unedited"]["reason"]
    assert serve(checked_sweep(served_world, tmp_path / "sweep", **changes)).loads == 1


@contextlib.contextmanager
def with_a_process(made: list[subprocess.Popen], then: str):
    """Within the block an engine has a process of its own, and does not come to be or does not end in order."""
    began = stand_in_vllm.LLM.__init__

    def start(self, *args, **more):
        made.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if then == "fails to start":
            raise RuntimeError("no room for the cache")
        began(self, *args, **more)
        self.llm_engine.engine_core.shutdown = lambda: 1 / 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in_vllm.LLM, "__init__", start)
        try:
            yield
        finally:
            for process in made:
                process.kill()


@pytest.mark.parametrize("then", ["fails to start", "fails to end"])
def test_no_process_of_an_engine_outlives_it(vllm, served_world, tmp_path, then):
    changes = {"editors": [design_of(served_world)["editors"][1]], "n_edits": [1], "tasks": ["toy_likely"]}
    made: list[subprocess.Popen] = []
    alive: list[list[bool]] = []
    start = harness.start

    def look(*args, **more):
        alive.append([process.poll() is None for process in made])
        return start(*args, **more)

    with with_a_process(made, then), pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "start", look)
        outcome = serve(checked_sweep(served_world, tmp_path / "sweep", **changes))
        assert alive == [[], [False]] and all(process.poll() is not None for process in made)
    assert not list((tmp_path / "sweep").rglob(left_over.PROCESSES))
    reasons = [record["reason"] for record in cells(tmp_path / "sweep").values() if record["status"] == "failed"]
    assert reasons == ["vLLM: RuntimeError: no room for the cache"] * (2 if then == "fails to start" else 0)
    assert len(outcome.failed) == len(reasons)


@pytest.mark.parametrize("call", [1, 2])  # while its answers are checked, while its tasks are asked
def test_an_engine_that_dies_costs_no_cell(vllm, served_world, tmp_path, call):
    changes = {"tasks": ["toy_likely", "toy_says"]}
    with stand_in_vllm.dying("tiny/rome-facts-file_order/n00001", call, most=1) as deaths:
        outcome = serve(checked_sweep(served_world, tmp_path / "sweep", **changes))
    assert deaths and not outcome.failed and len(outcome.statuses) == 5
    assert outcome.loads == 1 + 2 + 2  # the model, an engine and the one after it, two checkpoints
    assert not (tmp_path / "sweep/.serving").exists()


def test_a_cell_that_every_engine_dies_of_costs_no_other(vllm, served_world, tmp_path):
    changes = {"tasks": ["toy_likely"], "n_edits": [1]}
    checked = checked_sweep(served_world, tmp_path / "sweep", **changes)
    with stand_in_vllm.dying(None, 1, most=vllm_engine.TRIES) as deaths:
        outcome = serve(checked)
    assert len(deaths) == vllm_engine.TRIES and outcome.failed == ["tiny/unedited"] and len(outcome.statuses) == 3
    reason = cells(tmp_path / "sweep")["tiny/unedited"]["reason"]
    assert reason.startswith("vLLM does not answer any more: RuntimeError: EngineCore encountered")
    assert serve(checked).loads == 1  # an engine: it still waited


def test_a_task_that_fails_is_no_engine_that_died(vllm, served_world, tmp_path, monkeypatch):
    def fail(self, *args, **more):
        raise ValueError("no such thing")

    changes = {"tasks": ["toy_likely", "toy_says"], "n_edits": [1]}
    monkeypatch.setattr("lm_eval_edit.harness.served.ServedModel.generate_until", fail)
    outcome = serve(checked_sweep(served_world, tmp_path / "sweep", **changes))
    assert len(outcome.failed) == 3 and outcome.loads == 1 + 1 + 1
    found = cells(tmp_path / "sweep")["tiny/unedited"]
    assert found["failed_tasks"] == {"toy_says": "ValueError: no such thing"}
    assert all(said.keys() == {"toy_likely"} for said in answers(tmp_path / "sweep").values())


def test_an_adapter_of_too_high_a_rank_is_a_checkpoint(vllm, served_world, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "VLLM_RANKS", (1,))
    monkeypatch.setattr(stand_in_vllm, "RANKS", (1,))
    changes = {"editors": [design_of(served_world)["editors"][0]], "tasks": ["toy_likely"]}
    checked = checked_sweep(served_world, tmp_path / "sweep", **changes)
    lines = "\n".join(routes.route_lines(checked))
    assert "rank 2 is above vLLM's limit of 1" in lines and "max_lora_rank 1" in lines
    assert not serve(checked).failed
    told = {name: record["engine"]["served"] for name, record in cells(tmp_path / "sweep").items()}
    assert sorted(told.values()) == ["adapter", "base", "checkpoint"]
    assert told["tiny/rome-facts-file_order/n00002"] == "checkpoint"


def test_a_collapsed_row_stops(vllm, served_world, tmp_path, monkeypatch):
    found = iter([10.0, 50.0])  # of the unedited model and after the first edit; nobody looks after the second
    monkeypatch.setattr("lm_eval_edit.sweep.worker.perplexity", lambda *_: next(found))
    changes = {"editors": [design_of(served_world)["editors"][0]], "tasks": ["toy_likely"], "stop_at_perplexity": 3}
    outcome = serve(checked_sweep(served_world, tmp_path / "sweep", **changes))
    found = {name.rpartition("/")[2]: record for name, record in cells(tmp_path / "sweep").items()}
    assert found["n00001"]["status"] == "done" and "stop_at_perplexity" in found["n00001"]["collapsed"]
    assert found["n00002"]["status"] == "collapsed" and len(outcome.statuses) == 3


# ------------------------------------------------------------------------------------------------ two engines, compared


def test_compare_warns_of_two_engines_and_tells_what_they_differ_by_without_an_edit(local, served, tmp_path, capsys):
    cell = "tiny/rome-facts-file_order/n00002"
    assert main(["compare", str(local / "tiny/unedited"), str(served / cell), "--tasks", "toy_likely,toy_says"]) == 0
    said = capsys.readouterr().err
    assert "different engines: transformers" in said and f"vllm {stand_in_vllm.VERSION} (float32)" in said
    assert "The unedited model in both: toy_likely acc +0, 0 of 18 answers changed; toy_says" in said
    assert main(["compare", str(served / "tiny/unedited"), str(served / cell), "--tasks", "toy_likely"]) == 0
    assert "different engines" not in capsys.readouterr().err
    base, edited = load_run(local / "tiny/unedited"), load_run(local / cell)
    settings = Settings(tasks=("toy_likely", "toy_says"))
    assert warnings(compare_runs(base, edited, settings), settings) == []
    assert noise_floor(base, edited, settings) is None


def test_tasks_answered_by_the_edited_model_itself_are_of_one_engine(local, served):
    cell = "tiny/rome-facts-file_order/n00002"
    runs = [load_run(root / cell) for root in (local, served)]
    settings = Settings(tasks=("edithurt_efficacy",))
    assert warnings(compare_runs(*runs, settings), settings) == []
    (warning,) = warnings(compare_runs(*runs, Settings()), Settings())
    assert warning.startswith("different engines: transformers ") and "vllm" in warning
    assert warning.endswith("; give a base of the same engine, or as --noise the unedited model in the other engine")


def test_a_folder_of_two_engines_is_told_when_it_goes_on_and_reported(local, served, served_world, tmp_path, capsys):
    root = tmp_path / "both"
    shutil.copytree(local, root)
    shutil.rmtree(root / "tiny/rome-facts-file_order/n00002")
    checked = checked_sweep(served_world, root)
    (notice,) = engine.mixed(checked, "vllm")
    assert "4 of the cells that are there were evaluated by transformers, those to come by vllm" in notice
    assert engine.mixed(checked, "transformers") == []
    outcome = serve(checked)
    assert list(outcome.statuses) == ["tiny/rome-facts-file_order/n00002"] and not outcome.failed
    assert main(["report", str(root), "--no-plots", "-o", str(root / "report.html")]) == 0
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "1 cell is held against the unedited tiny across different engines" in page


@pytest.mark.parametrize(
    ("results", "found"),
    [
        ({"config": {"model": "hf", "model_dtype": "torch.float16"}, "transformers_version": "5.1"},
         Engine("transformers", "5.1", "float16")),
        ({"config": {"model": "vllm", "model_args": "pretrained=x,dtype=bfloat16"}}, Engine("vllm", None, "bfloat16")),
        ({"config": {"model": "vllm", "model_args": {"pretrained": "x", "dtype": "auto"}}}, Engine("vllm")),
        ({"config": {"model": "openai-completions", "model_args": "model=x"}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_engine_of_a_results_file(results, found):
    assert engine_of(results) == found


def test_what_is_not_said_is_no_difference():
    one = Engine("vllm", "0.32", "float32")
    assert not one.differs(replace(one, dtype=None)) and not one.differs(replace(one, version="0.33"))
    assert one.differs(replace(one, dtype="bfloat16")) and one.differs(replace(one, name="transformers"))


# ---------------------------------------------------------------------------------------------------------- interrupted


def test_what_a_killed_run_left_of_its_engine_is_ended_and_nothing_else(vllm, served_world, served, tmp_path):
    sleep, room = [sys.executable, "-c", "import time; time.sleep(600)"], served / ".serving"
    bystander = subprocess.Popen(sleep)
    with left_over.noted(room):
        left = subprocess.Popen(sleep)
    try:
        noted = json.loads((room / left_over.PROCESSES).read_text())
        assert [number for number, _ in noted["processes"]] == [left.pid]
        serve(checked_sweep(served_world, served))
        assert not psutil.pid_exists(left.pid) and bystander.poll() is None and not room.exists()
        theirs = [[bystander.pid, psutil.Process(bystander.pid).create_time()]]
        others = ({"host": "elsewhere", "processes": theirs}, {"processes": [[bystander.pid, 1.0]]})
        for other in others:  # another machine, another birth
            room.mkdir()
            (room / left_over.PROCESSES).write_text(json.dumps(noted | other))
            assert left_over.end_left_over(room) == 0
            left_over.forget(room)
            room.rmdir()
        assert bystander.poll() is None
    finally:
        left.kill()
        bystander.kill()
