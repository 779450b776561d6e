"""A schedule carried out step by step, as a curve needs it: any state after any other, no edit made twice."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.model import CachingLM

from lm_eval_edit import EditedHFLM, EditError
from lm_eval_edit.editors import EditResult
from lm_eval_edit.editors.alphaedit import AlphaEdit
from lm_eval_edit.editors.prune import Prune
from lm_eval_edit.editors.rome import Rome
from lm_eval_edit.edits.answers import answers
from lm_eval_edit.plan import make_plan
from lm_eval_edit.weights import delta_files
from tests.support.tiny import (
    FACTS,
    TEMPLATES,
    same_weights,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
    write_facts,
)

ROME = {"layers": [1], "v_num_grad_steps": 4, "v_lr": 0.5, "v_weight_decay": 1e-3, "context_templates": TEMPLATES}
ALPHAEDIT = {"layers": [1], "v_num_grad_steps": 4, "v_lr": 0.5, "nullspace_threshold": 0.5}
# Methods that keep a state between operations or correct their sum at the end are where step by step may go wrong.
EDITORS = {"rome": ROME, "prune": ROME | {"over": "rome", "alpha": 2.0}, "alphaedit": ALPHAEDIT}


@pytest.fixture
def options(tmp_path):
    write_facts(tmp_path / "facts.jsonl")
    moments = tmp_path / "moments.safetensors"
    from safetensors.torch import save_file

    save_file(
        {f"{name}.second_moment": moment.float() for name, moment in tiny_second_moments(tiny_model()).items()}, moments
    )

    def make(editor: str, n: int, **more):
        return {
            "editor": editor, "n_edits": n, "edit_seed": None, "edit_dataset": str(tmp_path / "facts.jsonl"),
            "edit_config": EDITORS[editor], "edit_second_moments": str(moments),
        } | more  # fmt: skip

    return make


def load(model=None, **options) -> EditedHFLM:
    return EditedHFLM(pretrained=model or tiny_model(), tokenizer=tiny_tokenizer(), device="cpu", **options)


@pytest.mark.parametrize("editor", EDITORS)
def test_step_by_step_in_any_order_equals_runs_of_each_length(options, monkeypatch, editor):
    fresh = {n: weights_of(load(**options(editor, n)).model) for n in (1, 2, 3)} | {0: weights_of(tiny_model())}
    kind = {"rome": Rome, "prune": Prune, "alphaedit": AlphaEdit}[editor]
    compute, computed = kind.compute, []
    monkeypatch.setattr(kind, "compute", lambda *args: computed.append(args[2]) or compute(*args))
    lm = load()
    lm.begin(make_plan(lm.model, options(editor, 3), {}))
    assert same_weights(lm.model, fresh[0]), "a schedule that has begun changes nothing yet"
    for n in (1, 0, 2, 2, 1, 3, 0, 3):
        lm.apply(n)
        assert same_weights(lm.model, fresh[n]), n
        assert lm.edit_record()["n_edits"] == n == len(lm.edit_record()["fact_ids"])
    assert len(computed) == 3, "each edit once"


def test_the_record_of_a_prefix_is_that_of_a_run_of_its_length(options):
    lm = load(**options("rome", 3))
    lm.apply(2)
    wanted = load(**options("rome", 2)).edit_record()
    got = lm.edit_record()
    for timed in ("seconds_per_edit",):
        got.pop(timed), wanted.pop(timed)
    assert got == wanted
    lm.apply()
    assert lm.edit_record()["guards"] != wanted["guards"]


def test_another_schedule_on_the_same_model_starts_from_the_unedited_weights(options):
    model = tiny_model()
    lm = load(model, **options("rome", 2))
    lm.begin(make_plan(model, options("alphaedit", 2, edit_batch_size=2), {}))
    lm.apply()
    assert same_weights(model, weights_of(load(**options("alphaedit", 2, edit_batch_size=2)).model))
    lm.begin(make_plan(model, {"editor": "none"}, {}))
    lm.apply()
    assert same_weights(model, weights_of(tiny_model())) and lm.ledger is None and lm.edit_record()["n_edits"] == 0


@pytest.fixture
def third_breaks(monkeypatch):
    """ROME's edit of the third fact is not finite."""
    compute = Rome.compute

    def breaks(self, context, facts, history=()):
        result = compute(self, context, facts, history)
        if facts[0].id == FACTS[2].id:
            result = EditResult({name: type(d)(d.left * torch.nan, d.right) for name, d in result.deltas.items()})
        return result

    monkeypatch.setattr(Rome, "compute", breaks)


def test_a_broken_edit_leaves_the_earlier_ones_in_the_ledger(options, third_breaks):
    lm = load()
    lm.begin(make_plan(lm.model, options("rome", 4), {}))
    with pytest.raises(EditError, match="not finite"):
        lm.apply()
    assert same_weights(lm.model, weights_of(tiny_model()))
    lm.apply(2)
    assert same_weights(lm.model, weights_of(load(**options("rome", 2)).model))


def test_after_a_broken_edit_the_response_cache_is_the_unedited_models(options, third_breaks, tmp_path):
    lm = load()
    CachingLM(lm, str(tmp_path / "cache.db"))
    lm.begin(make_plan(lm.model, options("rome", 4), {}))
    lm.apply(0)
    unedited = lm.cache_hook.dbdict.tablename
    lm.apply(2)
    assert lm.cache_hook.dbdict.tablename != unedited
    with pytest.raises(EditError, match="not finite"):
        lm.apply()
    assert lm.cache_hook.dbdict.tablename == unedited


def test_a_method_without_state_reads_no_earlier_operation_again(options, monkeypatch, tmp_path):
    read, load_tensors = [], delta_files.load_tensors
    monkeypatch.setattr(
        delta_files, "load_tensors", lambda path, *rest: read.append(path.name) or load_tensors(path, *rest)
    )
    for editor, wanted in (("rome", []), ("alphaedit", [])):
        read.clear()
        lm = load()
        lm.begin(make_plan(lm.model, options(editor, 3, edit_ledger=str(tmp_path / editor)), {}))
        for n in (1, 2, 3):
            lm.apply(n)
        assert sorted(read) == wanted


def test_two_targets_of_one_token_behind_a_prompt_are_one_row_with_the_same_answers(monkeypatch):
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    prompts = ["The mother tongue of", "The mother tongue of", "I was born in", "The mother tongue of"]
    targets = [" Spanish", " French", " the city", " Spanish French"]
    alone = [answers(model, tokenizer, [prompt], [target])[0] for prompt, target in zip(prompts, targets, strict=True)]
    rows, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: rows.append(len(k["input_ids"])) or forward(*a, **k))
    together = answers(model, tokenizer, prompts, targets)
    assert rows == [3], "the first two are one; a longer target reads more"
    for one, other in zip(alone, together, strict=True):
        assert (one.predicted, one.target) == (other.predicted, other.target)
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-9)
