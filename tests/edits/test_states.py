"""Requests in other states of the weights: answered there, one state after the other, and the weights come back."""

from __future__ import annotations

import json

import pytest
from lm_eval.api.instance import Instance

from lm_eval_edit import EditedHFLM, UserError
from lm_eval_edit.edits.states import answer_by_state, in_state, wanted_state
from lm_eval_edit.harness.requests import Origin, make
from tests.support.harness_runs import evaluate, figures
from tests.support.tiny import LEARNABLE, same_weights, tiny_model, tiny_tokenizer, weights_of

pytestmark = pytest.mark.libraries

PROMPT = "The mother tongue of Nils Albrecht"
FACTS = [fact.record() for fact in LEARNABLE] + [LEARNABLE[0].record() | {"id": "2", "target_new": "German"}]


def request(state=None, text=" French", kind="loglikelihood"):
    arguments = (PROMPT, text if kind == "loglikelihood" else {"until": [], "max_gen_toks": 3})
    return make(Instance, kind, {}, arguments if state is None else in_state(arguments, state), 0, Origin("t", 0, 1))


@pytest.fixture
def lm(tmp_path):
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(FACTS))
    config = {"context_templates": ["{}"], "layers": [1], "v_num_grad_steps": 5}
    options = {"editor": "rome", "n_edits": 3, "edit_dataset": str(file), "edit_seed": None, "edit_config": config}
    return EditedHFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), **options, batch_size=2, device="cpu")


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
@pytest.mark.parametrize("present", [0, 2, 3])
def test_answers_are_those_of_the_state_and_the_weights_come_back(lm, kind, present):
    ask = getattr(lm, kind)
    by_hand = {}
    for state in range(present + 1):
        lm.apply(state)
        by_hand[state] = ask([request(kind=kind)])[0]
    if present == 3 and kind == "loglikelihood":
        assert len(set(by_hand.values())) == 4
    lm.apply(present)
    kept = weights_of(lm.model)
    wanted = [present, None, 0, *range(present, -1, -1), None]
    found = ask([request(state, kind=kind) for state in wanted])
    assert found == [by_hand[present if state is None else state] for state in wanted]
    assert same_weights(lm.model, kept) and lm.ledger.applied == present


def test_every_operation_is_applied_once_on_the_way_and_once_on_the_way_back(lm, monkeypatch):
    applied = []
    apply = lm.ledger.weights.apply
    monkeypatch.setattr(lm.ledger.weights, "apply", lambda deltas: (applied.append(len(deltas)), apply(deltas)))
    lm.loglikelihood([request(state) for state in (3, 1, 2, 1, 3, 2, 1)])
    assert sum(applied) == 3, "1, 2, and back to 3, one after the other"
    applied.clear()
    lm.loglikelihood([request(0), request()])
    assert sum(applied) == 3
    applied.clear()
    lm.loglikelihood([request(3), request()])
    assert not applied


def test_the_weights_come_back_after_an_error_too(lm, monkeypatch):
    kept = weights_of(lm.model)

    def fails(some, hide):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        answer_by_state([request(1)], lm.ledger, fails, lambda: None)
    assert same_weights(lm.model, kept) and lm.ledger.applied == 3


def test_a_state_that_was_not_reached(lm):
    lm.apply(2)
    with pytest.raises(UserError, match="asks for the weights after 3 operations, this model carries 2"):
        lm.loglikelihood([request(0), request(3)])
    unedited = EditedHFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), editor="none", device="cpu")
    with pytest.raises(UserError, match="this model carries 0"):
        unedited.loglikelihood([request(1)])
    assert unedited.loglikelihood([request(0)]) == unedited.loglikelihood([request()])


def test_several_processes_search_for_no_batch_size_where_they_may_differ_in_states(lm):
    lm.batch_size_per_gpu = "auto"
    lm._processes = object()
    with pytest.raises(UserError, match="give batch_size a number"):
        lm.generate_until([request(0, kind="generate_until")])


def test_the_state_is_an_argument_and_is_taken_off_before_the_model_sees_it(lm):
    marked = request(2)
    assert wanted_state(marked) == 2 and wanted_state(request()) is None
    assert wanted_state(request(kind="generate_until")) is None
    lm.loglikelihood([marked])
    assert marked.args == (PROMPT, " French", {"after_operations": 2})


def test_a_method_that_ends_its_schedule_with_a_correction(tmp_path):
    """PRUNE restrains the sum of the edits anew for every length: its states do not start from one another."""
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(FACTS))
    config = {"over": "rome", "context_templates": ["{}"], "layers": [1]}
    config |= {"v_num_grad_steps": 20, "v_lr": 2.0, "clamp_norm_factor": 100, "kl_factor": 0.0}  # larger than W0
    lm = EditedHFLM(
        pretrained=tiny_model(), tokenizer=tiny_tokenizer(), editor="prune", n_edits=3, edit_dataset=str(file),
        edit_seed=None, edit_config=config, device="cpu",
    )  # fmt: skip
    lm.ledger.replay(0)
    lm.ledger.replay(3)
    assert lm.ledger.finish(lm.ledger.weights.changes()), "there is a correction"
    by_hand = []
    for state in range(4):
        lm.restore()
        lm.apply(state)
        by_hand.append(lm.loglikelihood([request()])[0])
    kept = weights_of(lm.model)
    assert lm.loglikelihood([request(state) for state in range(4)]) == by_hand
    assert same_weights(lm.model, kept)


def test_the_response_cache_keeps_the_states_apart(tmp_path):
    options = {"editor": "rome", "n_edits": 4, "edit_when": "after_each", "pretrained": "demo"}
    lm = EditedHFLM(**options, device="cpu")
    tasks = ["edithurt_editing"]
    plain = evaluate(lm, options, tasks)
    first = evaluate(lm, options, tasks, use_cache=str(tmp_path / "cache"))
    asked = []
    stock = lm._loglikelihood_tokens
    lm._loglikelihood_tokens = lambda some, **more: (asked.extend(some), stock(some, **more))[1]
    second = evaluate(lm, options, tasks, use_cache=str(tmp_path / "cache"))
    assert not asked, "all answers come from the cache"
    after_all = evaluate(lm, options | {"edit_when": "after_all"}, tasks, use_cache=str(tmp_path / "cache"))
    assert asked, "another state has other answers"
    for kind in ("efficacy", "generalization", "locality"):
        assert figures(plain, kind) == figures(first, kind) == figures(second, kind)
    assert figures(after_all, "locality") != figures(plain, "locality")
    lm._loglikelihood_tokens = stock
    fresh = evaluate(EditedHFLM(**options, device="cpu"), options | {"edit_when": "after_all"}, tasks)
    assert figures(fresh, "locality") == figures(after_all, "locality")
