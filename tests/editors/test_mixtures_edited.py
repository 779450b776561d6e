"""Edited mixtures: which experts are changed, what is recorded, and that it can be undone and repeated."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import Fact, UserError, edit_model
from lm_eval_edit.editors._shared.finetune import target_row
from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.editors._shared.target import optimise_targets
from lm_eval_edit.editors._shared.trained import trained_parts
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.facts.chat import chat_frame, placed
from lm_eval_edit.models.architecture import Architecture
from tests.support.chat_models import chat_tokenizer
from tests.support.mixture_edits import LAYERS, ROUTED, context_of, edited, output_of, subject_ids
from tests.support.mixtures import (
    EXPERTS,
    every_mixture,
    every_routed,
    every_shared,
    mixture_model,
    plain_routing,
)
from tests.support.tiny import FACTS, NESTED_TEMPLATES, TEMPLATES, same_weights, tiny_tokenizer, weights_of

pytestmark = pytest.mark.libraries


@every_mixture
@pytest.mark.parametrize("editor", ["memit", "memit_seq", "alphaedit", "emmet", "encore"])
def test_experts_that_are_not_picked_keep_their_bits(name, editor):
    model = mixture_model(name)
    kept, architecture = weights_of(model), Architecture.discover(model).routed()
    picked = {
        layer: {int(e) for each in TEMPLATES for e in plain_routing(model, subject_ids(FACTS[0], each), layer)[1]}
        for layer in LAYERS
    }
    ledger = edited(model, editor, FACTS[:1], 1)
    changed = [p for p, w in model.named_parameters() if not torch.equal(w, kept[p])]
    assert changed == [architecture.weight(layer) for layer in LAYERS]
    weight = architecture.weight(1)
    moved = {e for e in range(EXPERTS) if not torch.equal(model.get_parameter(weight)[e], kept[weight][e])}
    assert moved == picked[1]
    ledger.restore()
    assert same_weights(model, kept)


# ------------------------------------------------------------------------------------------------------ ROME and FT


@every_mixture
def test_rome_writes_the_value_with_one_expert(name):
    model, fact = mixture_model(name), FACTS[2]
    context, kept = context_of(model, TEMPLATES), weights_of(model)
    wanted = optimise_targets(
        model, context.tokenizer, context.architecture, [fact], layer=1, site="mlp", contexts=TEMPLATES, steps=4,
        lr=0.5, weight_decay=0.5, clamp_norm_factor=4, kl_factor=0.0625,
    ).value[0]  # fmt: skip
    _, index, gates = plain_routing(model, subject_ids(fact), 1)
    options = {"layers": [1], "v_num_grad_steps": 4, "edit_experts": "routed", "min_gate": 0.1}
    ledger = edited(model, "rome", [fact], 1, options, context_templates=TEMPLATES)
    (delta,) = ledger.operations[0].deltas.values()
    assert delta.places == [int(index[gates.argmax()])] and delta.rank == 1
    tolerance = 1e-5 if name == "qwen3_next" else 1e-9  # its recurrence computes in float32
    torch.testing.assert_close(output_of(model, "model.layers.1.mlp", fact), wanted, rtol=tolerance, atol=tolerance)
    ledger.restore()
    assert same_weights(model, kept)


@every_routed
def test_fine_tuning_the_picked_experts_is_fine_tuning_all(name):
    facts, options = FACTS[:1], {"layers": [1], "num_steps": 4, "lr": 1e-2}
    model = mixture_model(name, **{"num_experts_per_tok": 1})
    architecture, kept = Architecture.discover(model), weights_of(model)
    ledger = edited(model, "ft", facts, 1, options, context_templates=None)
    (delta,) = ledger.operations[0].deltas.values()
    assert delta.kind == "slices"
    details = ledger.operations[0].record["details"]
    assert details["experts"] == {architecture.weight(1): delta.places} and details["loss"][1] < details["loss"][0]
    found = delta.dense(torch.float64)
    ledger.restore()
    assert same_weights(model, kept)
    chosen = {"experts": list(range(EXPERTS))}
    (every,) = edited(model, "ft", facts, 1, options | chosen, context_templates=None).operations[0].deltas.values()
    assert torch.equal(every.dense(torch.float64), found)
    assert every.places == [0, 1, 2, 3]


def test_what_is_trained_is_found_without_what_stands_above_it():
    model, ran = mixture_model("qwen3_moe"), []
    rows = [target_row(tiny_tokenizer(), fact) for fact in FACTS[:2]]
    model.model.layers[2].register_forward_pre_hook(lambda module, args: ran.append("block 2"))
    model.lm_head.register_forward_pre_hook(lambda module, args: ran.append("head"))
    (part,) = trained_parts(model, Architecture.discover(model), [1], rows)
    assert not ran
    assert set(part.index.tolist()) == set().union(*(picked_for(model, row.ids, 1) for row in rows))


def picked_for(model, ids, layer):
    """The experts that any of some tokens goes to."""
    return {e for end in range(len(ids)) for e in plain_routing(model, ids[: end + 1], layer)[1].tolist()}


def test_an_expert_that_is_first_picked_while_lower_ones_are_trained_stays_as_it_is():
    model = mixture_model("mixtral", num_experts_per_tok=1)
    weight, ids = Architecture.discover(model).weight(2), target_row(tiny_tokenizer(), FACTS[0]).ids
    kept, before = weights_of(model), picked_for(model, ids, 2)
    ledger = edited(model, "ft", FACTS[:1], 1, {"layers": [1, 2], "num_steps": 12, "lr": 0.1}, context_templates=None)
    new = picked_for(model, ids, 2) - before
    assert new, "what layer 1 gives now is sent elsewhere in layer 2"
    assert set(ledger.operations[0].deltas[weight].places) == before
    assert torch.equal(model.get_parameter(weight)[list(new)], kept[weight][list(new)])


def test_fine_tuning_one_expert_leaves_the_others():
    model = mixture_model("gpt_oss")
    ledger = edited(model, "ft", FACTS[:2], 2, {"layers": [1], "num_steps": 3, "experts": [2]}, context_templates=None)
    assert ledger.operations[0].deltas["model.layers.1.mlp.experts.down_proj"].places == [2]
    for experts, problem in (
        ("2:4", "experts=4: layer 1 has experts 0 to 3"),
        ([-1], r"experts=\[-1\]: want experts' numbers, each once, as 3:17 or a list"),
        ("1:1", "want experts' numbers, each once"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            edited(model, "ft", FACTS[:2], 2, {"layers": [1], "experts": experts}, context_templates=None)


# ------------------------------------------------------------------------------------------------- what is recorded


@every_routed
def test_routing_before_and_after_is_recorded(name, caplog):
    model = mixture_model(name)
    before = {layer: plain_routing(model, subject_ids(FACTS[0]), layer) for layer in (1, 2)}
    options = {"layers": [1], "num_steps": 12, "lr": 0.1}
    ledger = edited(model, "ft", FACTS[:1], 1, options, context_templates=None)
    after = plain_routing(model, subject_ids(FACTS[0]), 2)
    found = ledger.operations[0].record["details"]["routing"]
    (first,), (last,) = found["by_layer"]["1"]["experts"]
    assert first == last and set(first) == set(before[1][1].tolist())
    assert sum(found["by_layer"]["1"]["gates"][0][0]) == pytest.approx(float(before[1][2].sum()), abs=1e-4)
    moved = set(before[2][1].tolist()) != set(after[1].tolist())
    assert found["changed"] == ({"2": ["0"]} if moved else {})
    assert ("router of layer 2 picks for the subjects of 1 fact (0)" in caplog.text) == moved
    assert moved or name != "gpt_oss", "at least one of these edits changes what the next router sees enough"


def test_inside_a_chat_template_the_prompt_in_its_frame_is_looked_at():
    tokenizer = chat_tokenizer("{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}")
    model = mixture_model("qwen3_moe", vocab_size=len(tokenizer), max_position_embeddings=256)
    fact = Fact("Nils", "The mother tongue of {} is", "ab", "cd", id="0")
    ledger = edit_model(model, tokenizer, [fact], "ft", options={"layers": [1], "num_steps": 2}, chat_template=True,
                        progress=False)  # fmt: skip
    found = ledger.operations[0].record["details"]["routing"]["by_layer"]["1"]["experts"][0][0]
    ledger.restore()
    (framed,) = placed([fact], chat_frame(tokenizer))
    rows = [prompt_row(tokenizer, each.behind("{}"), fact.subject) for each in (framed, fact)]
    inside, outside = (row.ids[: row.subject_last + 1] for row in rows)
    assert len(inside) > len(outside) and set(found) == set(plain_routing(model, inside, 1)[1].tolist())


def test_experts_are_computed_one_by_one_while_editing_only():
    model, seen = mixture_model("qwen3_moe", torch.float32), []
    model.set_experts_implementation("batched_mm")
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_pre_hook(lambda module, args: seen.append(module.config._experts_implementation))
    ledger = edited(model, "memit", FACTS[:1], 1)
    assert set(seen[1:]) == {"eager"}, "templates are given, so that nothing is generated"
    assert model.config._experts_implementation == "batched_mm"
    ledger.restore()


@every_routed
def test_a_run_is_replayed_bit_for_bit(name, tmp_path):
    model, facts = mixture_model(name), FACTS[:4]
    kept = weights_of(model)
    ledger = edited(model, "memit_seq", facts, 2, ledger=tmp_path)
    after = weights_of(model)
    ledger.restore()
    assert same_weights(model, kept) and not same_weights(model, after)
    again = edited(model, "memit_seq", facts, 2, ledger=tmp_path)
    assert same_weights(model, after) and len(again.operations) == 2
    again.restore()
    edited(model, "memit_seq", facts[:2], 2, ledger=tmp_path / "part")
    edited(model, "memit_seq", facts, 2, ledger=tmp_path / "part")
    assert same_weights(model, after), "the second operation starts from the keys that the first has left"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_routed
def test_half_precision_mixtures_are_edited_in_float32(name, dtype):
    model = mixture_model(name, dtype)
    kept = weights_of(model)
    ledger = edited(model, "memit")
    for delta in ledger.operations[0].deltas.values():
        assert {t.dtype for t in delta.tensors().values()} == {torch.float32, torch.int64}
    ledger.restore()
    assert same_weights(model, kept)


# ---------------------------------------------------------------------------------------- shared experts, wrappers


@every_shared
@pytest.mark.parametrize("editor", ["rome", "memit", "alphaedit", "ft", "kn", "ultraedit"])
def test_a_shared_expert_is_edited_as_an_mlp(name, editor):
    model = mixture_model(name)
    architecture, kept = Architecture.discover(model), weights_of(model)
    refused = {"deepseek_v3": r"must be as many in each; here \[16, 80\]", "qwen3_next": "keeps a recurrent state"}
    if editor == "kn" and name in refused:
        with pytest.raises(UserError, match=refused[name]):
            edited(model, editor, FACTS[:1], 1, {}, context_templates=None)
        return
    one, steps = editor in ("rome", "kn"), {} if editor in ("ft", "kn", "ultraedit") else {"v_num_grad_steps": 4}
    options = steps | ({} if editor == "kn" else {"layers": [1]})
    templates = {"rome": TEMPLATES, "memit": NESTED_TEMPLATES, "alphaedit": NESTED_TEMPLATES}.get(editor)
    ledger = edited(model, editor, FACTS[:2], 1 if one else 2, options, context_templates=templates)
    changed = [p for p, w in model.named_parameters() if not torch.equal(w, kept[p])]
    assert changed and set(changed) <= {architecture.weight(layer) for layer in range(3)}
    assert editor == "kn" or all("shared_expert" in p for p in changed)
    assert set(ledger.operations[0].record["details"]["routing"]) == {"by_layer", "changed"}
    ledger.restore()
    assert same_weights(model, kept)


@pytest.mark.parametrize("over", ["rect", "prune", "sphere", "random"])
def test_wrappers_change_each_experts_own_matrix(over):
    model = mixture_model("gpt_oss")
    kept, chooser = weights_of(model), "like" if over == "random" else "over"
    plain = edited(model, "memit")
    before = plain.operations[0].deltas
    plain.restore()
    ledger = edited(model, over, options=ROUTED | {chooser: "memit", "mom2_update_weight": 5.0})
    for name, delta in ledger.operations[0].deltas.items():
        assert delta.places == before[name].places
        if over != "prune":
            assert not torch.allclose(delta.dense(torch.float64), before[name].dense(torch.float64))
    ledger.restore()
    assert same_weights(model, kept)


def test_memit_of_a_dense_and_a_mixed_layer():
    model = mixture_model("deepseek_v3")
    ledger = edited(model, "memit", options=ROUTED | {"layers": [0, 1]})
    assert [delta.kind for delta in ledger.operations[0].deltas.values()] == ["low_rank", "stacked"]
