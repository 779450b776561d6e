"""Edits that did not take are told: one line after every run, the same in the guards, an error below `min_success`."""

from __future__ import annotations

import io
import json
import logging
from contextlib import redirect_stderr

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import ConfigurationError, EditError, demo, edit_model, load_facts
from lm_eval_edit.editors._shared.progress import steps
from lm_eval_edit.edits.schedule import EditSchedule
from lm_eval_edit.edits.success import Success
from lm_eval_edit.model import EditedHFLM
from lm_eval_edit.settings import parse_settings
from tests.conftest import ROOT
from tests.support.processes import python
from tests.support.tiny import FACTS, LEARNABLE, TEMPLATES, same_weights, tiny_model, tiny_tokenizer, weights_of

WEAK = {"mom2_update_weight": 1500}  # on the demo a λ that closes a third of the residual


def demo_run(n=20, size=20, options=WEAK, **more):
    model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    facts = [fact for batch in EditSchedule(n, size, 0).operations(load_facts("demo")) for fact in batch]
    kept = weights_of(model)
    run = {"second_moments": demo.SECOND_MOMENTS, "progress": False} | more
    return model, kept, lambda: edit_model(model, tokenizer, facts, "memit", size, options, **run)


def record(n, em, closed=None):
    return {"after": {"n": n, "em": em}, "details": {} if closed is None else {"closed": closed}}


@pytest.mark.parametrize(
    ("records", "at_end", "line", "share"),
    [
        ([record(20, 0.15, 0.09)], {"n": 20, "em": 0.15},
         "20 edits: 3 answered right after their own edit, 3 at the end; residual closed 9 %", 0.15),
        ([record(1, 1.0)] * 3, {"n": 3, "em": 1 / 3},
         "3 edits: 3 answered right after their own edit, 1 at the end", 1 / 3),
        ([record(1, 0.0)], {"n": 1, "em": 1.0}, "1 edit: 0 answered right after their own edit, 1 at the end", 0.0),
        ([record(3, 1.0, 0.9), record(1, 0.0, 0.5)], {"n": 4, "em": 1.0},
         "4 edits: 3 answered right after their own edit, 4 at the end; residual closed 80 %", 0.75),
        ([record(1, 1.0, 0.9), record(1, 1.0)], {"n": 2, "em": 1.0},
         "2 edits: 2 answered right after their own edit, 2 at the end", 1.0),
    ],
)  # fmt: skip
def test_what_is_said_of_a_run(records, at_end, line, share):
    found = Success.of(records, at_end)
    assert found.line() == line and found.share == pytest.approx(share)
    assert found.record()["edits_took_ok"] is (share >= 0.5)
    assert found.problem(None) is None and found.problem(share) is None
    assert found.problem(1.0) is None if share == 1 else line in found.problem(1.0)


def test_a_changed_answer_is_no_success(caplog):
    """The demo with a λ of a larger model: prompts are answered differently, and wrongly."""
    *_, run = demo_run()
    with caplog.at_level(logging.INFO):
        guards = run().guards
    assert guards["answers_changed_ok"] is True, "which says nothing"
    assert guards["edits_took_ok"] is False
    assert (guards["edits"], guards["right_after_own_edit"], guards["right_at_end"]) == (20, 3, 3)
    assert 0.2 < guards["residual_closed"] < 0.5
    [told] = [r for r in caplog.records if "right after their own edit" in r.message]
    assert told.levelno == logging.WARNING and told.message.startswith("20 edits: 3 answered")


def test_min_success_makes_it_an_error_and_restores(tmp_path):
    model, kept, run = demo_run(min_success=0.5, ledger=tmp_path / "ledger")
    with pytest.raises(EditError, match=r"min_success=0.5: 20 edits: 3 answered .* The model has been restored"):
        run()
    assert same_weights(model, kept)
    model, kept, run = demo_run(min_success=0.5, ledger=tmp_path / "ledger")
    with pytest.raises(EditError, match=r"min_success=0.5: 20 edits: 3 answered"):
        run()  # a ledger that is resumed, with nothing left to compute
    assert same_weights(model, kept)
    model, kept, run = demo_run(min_success=0.15, ledger=tmp_path / "ledger")
    assert run().guards["right_at_end"] == 3 and not same_weights(model, kept), "what was asked for is no other run"


@pytest.mark.parametrize("min_success", [None, 0, 1.0])
def test_a_run_that_took_says_so_without_a_warning(caplog, min_success):
    model = tiny_model()
    with caplog.at_level(logging.INFO):
        ledger = edit_model(
            model, tiny_tokenizer(), LEARNABLE[:1], options={"layers": [1], "v_lr": 1.0, "v_num_grad_steps": 40},
            context_templates=TEMPLATES, min_success=min_success, progress=False,
        )  # fmt: skip
    assert ledger.guards["edits_took_ok"] and ledger.guards["residual_closed"] is None
    [told] = [r for r in caplog.records if "right after their own edit" in r.message]
    assert told.levelno == logging.INFO
    assert told.message == "1 edit: 1 answered right after their own edit, 1 at the end"


@pytest.mark.parametrize("wrong", [-0.1, 1.1, "half"])
def test_min_success_is_a_share(wrong):
    with pytest.raises(ConfigurationError, match=r"min_success=.* want a share between 0 and 1"):
        edit_model(tiny_model(), tiny_tokenizer(), FACTS, min_success=wrong)
    _, problems = parse_settings({"min_success": wrong})
    assert problems == [f"min_success={wrong}: want a share between 0 and 1"]


def test_the_option_and_the_results_of_the_harness():
    assert parse_settings({"min_success": "0.5"})[0].min_success == 0.5
    assert parse_settings({"min_success": "none"})[0].min_success is None
    options = {"editor": "memit", "n_edits": 20, "edit_batch_size": 20, "mom2_update_weight": 1500, "device": "cpu"}
    with pytest.raises(EditError, match="20 edits: 3 answered right after their own edit"):
        EditedHFLM(**options, min_success=0.5)
    edit = json.loads(json.dumps(EditedHFLM(**options).edit_record()))
    assert edit["guards"]["right_at_end"] == 3 and edit["guards"]["edits_took_ok"] is False
    assert edit["options_from_model"] == {}


# ------------------------------------------------------------------------------------------- progress in an operation


@pytest.mark.parametrize("show", [True, False])
def test_a_bar_is_there_when_it_is_wanted_and_gone_afterwards(monkeypatch, show):
    monkeypatch.setattr("lm_eval_edit.editors._shared.progress.DELAY", 0)
    said = io.StringIO()
    with redirect_stderr(said):
        assert list(steps(range(3), "optimising 8 targets", "step", show=show)) == [0, 1, 2]
    assert ("optimising 8 targets" in said.getvalue()) is show


@pytest.mark.parametrize("editor", ["rome", "memit", "ft", "lora", "kn"])
@pytest.mark.parametrize("show", [True, False])
def test_long_work_within_one_operation_shows_its_progress(monkeypatch, editor, show):
    from tests.support.tiny import NESTED_TEMPLATES, tiny_second_moments

    monkeypatch.setattr("lm_eval_edit.editors._shared.progress.DELAY", 0)
    expected = {
        "rome": ["optimising 1 target"],
        "memit": ["targets", "optimising 1 target", "updating layers"],
        "ft": ["fine-tuning"],
        "lora": ["training the adapter"],
        "kn": ["attributing the answer"],
    }[editor]
    options = {
        "rome": {"layers": [1], "v_num_grad_steps": 3},
        "memit": {"layers": [0, 1], "v_num_grad_steps": 3},
        "ft": {"num_steps": 2},
        "lora": {"num_steps": 2, "target_modules": ["c_attn"]},
        "kn": {"steps": 2},
    }[editor]
    templates = {"rome": TEMPLATES, "memit": NESTED_TEMPLATES}.get(editor)
    said = io.StringIO()
    with redirect_stderr(said):
        edit_model(
            tiny_model(), tiny_tokenizer(), FACTS[:1], editor, options=options, context_templates=templates,
            second_moments=tiny_second_moments(tiny_model(torch.float64)), progress=show,
        )  # fmt: skip
    for what in expected:
        assert (what in said.getvalue()) is show


@pytest.mark.slow
@pytest.mark.parametrize("command", [("-m", "lm_eval"), ("-m", "lm_eval_edit", "run")])
def test_the_commands_print_the_line(command):
    """The harness shows no other package's INFO: the line was logged, and nobody saw it."""
    done = python(
        *command, "--model", "edited_hf", "--model_args", "editor=rome,n_edits=1", "--tasks", "edithurt_sst2",
        "--limit", "2", path=ROOT, LM_EVAL_EDIT_AUTOLOAD="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1 edit: 1 answered right after their own edit, 1 at the end\n") == 1
