"""A sweep inside chat templates: edited and asked there, the figures those of the harness; kept apart from others."""

from __future__ import annotations

import pytest

from lm_eval_edit import EditedHFLM
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.sweep import checking, folder
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.chat_models import SHAPES, save_chat
from tests.support.harness_runs import evaluate
from tests.support.small_sweeps import small, sweep
from tests.support.tiny import FACTS, write_facts

FT = {"layers": [1], "num_steps": 3, "lr": 5e-3, "objective_optimization": "target_new"}


@pytest.fixture
def design(tmp_path):
    model = save_chat(tmp_path / "model", SHAPES["BOS, trims"][0])
    facts = write_facts(tmp_path / "facts.jsonl", FACTS)
    return {
        "models": str(model), "editors": [{"editor": "ft", **FT}], "datasets": [str(facts)], "n_edits": [0, 1, 2],
        "tasks": ["edithurt_rte", "edithurt_efficacy"], "limit": 2, "apply_chat_template": True,
        "model_args": {"data_dir": "demo", "edit_chat_template": True},
    }  # fmt: skip


def test_a_sweep_inside_the_template(tmp_path, design):
    assert not sweep(tmp_path / "out", **design).failed
    last = [cell for _, cell in load_sweep(tmp_path / "out").cells()][-1]
    assert last.results["chat_template_sha"] and last.edit["chat_template"]["before"] == SHAPES["BOS, trims"][1]
    given = {
        "pretrained": design["models"], "editor": "ft", "n_edits": 2, "edit_dataset": design["datasets"][0],
        "edit_chat_template": True, "data_dir": "demo",
    }  # fmt: skip
    lm = EditedHFLM(**given, edit_config=FT, device="cpu", batch_size=32)
    found = evaluate(lm, given, design["tasks"], limit=2, apply_chat_template=True, bootstrap_iters=0)
    for task in design["tasks"]:
        wanted = {name: value for name, value in found["results"][task].items() if "stderr" not in name}
        assert {name: last.results["results"][task][name] for name in wanted} == wanted


def test_a_folder_of_other_questions_is_refused_and_an_old_one_is_not(tmp_path, design):
    assert "apply_chat_template" not in small().identity()
    asked, plain = small(**design).identity(), small(**design | {"apply_chat_template": False}).identity()
    assert asked == plain | {"apply_chat_template": True}


def test_a_model_without_template_is_told_before_it_loads(tmp_path, design):
    design["models"] = str(save_chat(tmp_path / "base", None))
    with pytest.raises(ConfigurationError, match=r"apply_chat_template: base: .* no chat template") as told:
        checking.check(small(**design), folder.SweepFolder(tmp_path / "out"))
    assert any("edit_chat_template=true: " in each for each in told.value.problems)


def test_a_task_that_knows_no_template_is_told_before_anything_loads(tmp_path, design):
    design["tasks"] = ["edithurt_rte", "edithurt_zsre"]
    with pytest.raises(ConfigurationError, match="edithurt_zsre asks as the published scripts do"):
        checking.check(small(**design), folder.SweepFolder(tmp_path / "out"))
