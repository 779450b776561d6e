"""Editing the experts of a mixture: the equations hold, and a plain implementation with whole matrices agrees."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_edit import Fact, UserError, edit_model
from lm_eval_edit.editors._shared.goals import find_goals
from lm_eval_edit.editors._shared.keys import solve_normal_equations, subject_states
from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.editors._shared.target import optimise_targets
from lm_eval_edit.editors.alphaedit import AlphaEdit, AlphaEditOptions
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.memit import MemitOptions
from lm_eval_edit.editors.memit_seq import MemitSeq, MemitSeqOptions
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.facts.chat import chat_frame, placed
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.chat_models import chat_tokenizer
from tests.support.mixtures import (
    EXPERTS,
    INNER,
    every_mixture,
    every_routed,
    every_shared,
    explicit_second_moments,
    mixture_model,
    plain_key,
    plain_routing,
    side_by_side,
)
from tests.support.tiny import FACTS, NESTED_TEMPLATES, TEMPLATES, same_weights, tiny_tokenizer, weights_of

pytestmark = pytest.mark.libraries

LAYERS = [1, 2]
ROUTED = {"layers": LAYERS, "v_num_grad_steps": 4, "edit_experts": "routed"}
MANY = {"context_templates": NESTED_TEMPLATES, "progress": False}


def edited(model, editor, facts=FACTS[:2], batch=2, options=None, **how):
    """A ledger of a run on `model` with moments of its own."""
    options = ROUTED if options is None else options
    moments = explicit_second_moments(model, options.get("edit_experts") == "routed")
    options = {"mom2_update_weight": 5.0} | options if editor.startswith("memit") else options
    return edit_model(model, tiny_tokenizer(), facts, editor, edit_batch_size=batch, options=options,
                      second_moments=moments, **(MANY | how))  # fmt: skip


def context_of(model, templates=NESTED_TEMPLATES):
    moments = SecondMoments(explicit_second_moments(model))
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model).routed(), templates, moments)


def subject_ids(fact, context="{}"):
    """The tokens of a prompt up to its subject's last."""
    row = prompt_row(tiny_tokenizer(), fact.behind(context), fact.subject)
    return row.ids[: row.subject_last + 1]


def mean_key(model, fact, layer):
    """The mean over the template types of the mean stacked key over each type's templates."""
    types = [[plain_key(model, subject_ids(fact, each), layer) for each in kind] for kind in NESTED_TEMPLATES]
    return torch.stack([torch.stack(keys).mean(dim=0) for keys in types]).mean(dim=0)


@every_mixture
def test_stacked_keys_are_those_of_the_plain_computation(name):
    model = mixture_model(name)
    found = subject_states(context_of(model), FACTS, LAYERS, 2).keys
    for layer in LAYERS:
        wanted = torch.stack([mean_key(model, fact, layer) for fact in FACTS], dim=1)
        exact = (1e-6, 1e-6) if name == "deepseek_v3" else (1e-9, 1e-12)  # its router computes in float32
        torch.testing.assert_close(found[layer], wanted, rtol=exact[0], atol=exact[1])


@every_routed
def test_normal_equations_hold(name):
    model = mixture_model(name)
    context = context_of(model)
    module = context.architecture.down_projections[1]
    keys = subject_states(context, FACTS, [1], 1).keys[1]
    whole = torch.block_diag(*context.second_moments[module])
    found = solve_normal_equations(context.second_moments, module, 5.0, keys)
    torch.testing.assert_close((5.0 * whole + keys @ keys.T) @ found, keys, rtol=1e-10, atol=1e-12)


@every_routed
def test_memit_seq_and_alphaedit_solve_with_earlier_keys(name):
    model = mixture_model(name)
    context = context_of(model)
    module = context.architecture.down_projections[1]
    keys = subject_states(context, FACTS, [1], 1).keys[1]
    whole = torch.block_diag(*context.second_moments[module])
    history = [{f"{module}.keys": keys[:, [number]]} for number in (0, 1)]
    earlier, new = keys[:, :2], keys[:, 2:]
    options = MemitSeqOptions(layers=(1,), mom2_update_weight=5.0, update_norm_lambda=0.3)
    found = MemitSeq(options)._directions(context, 1, new, history)
    system = 5.0 * whole + 0.3 * torch.eye(len(whole), dtype=torch.float64) + earlier @ earlier.T + new @ new.T
    torch.testing.assert_close(system @ found, new, rtol=1e-9, atol=1e-12)
    values, vectors = torch.linalg.eigh(whole)
    threshold = float(values.median())
    inside = vectors[:, values < threshold]
    p = inside @ inside.T
    found = AlphaEdit(AlphaEditOptions(layers=(1,), L2=0.7, nullspace_threshold=threshold))._directions(
        context, 1, new, history
    )
    system = p @ (earlier @ earlier.T + new @ new.T) + 0.7 * torch.eye(len(p), dtype=torch.float64)
    torch.testing.assert_close(system @ found, p @ new, rtol=1e-9, atol=1e-11)


@every_mixture
def test_memit_agrees_with_whole_matrices(name):
    """Everything but the targets is computed plainly: keys, one system of all experts, what each block lacks."""
    model, facts = mixture_model(name), FACTS[:2]
    context, o = context_of(model), MemitOptions(layers=tuple(LAYERS), v_num_grad_steps=4, edit_experts="routed")
    goals = find_goals(context, facts, 2, o).values
    plain = copy.deepcopy(model)
    for index, layer in enumerate(LAYERS):
        parameter = context.architecture.weight(layer)
        keys = torch.stack([mean_key(plain, fact, layer) for fact in facts], dim=1)
        outputs = torch.stack([block_output(plain, fact, 2) for fact in facts])
        c = torch.block_diag(*context.second_moments[parameter])
        directions = torch.linalg.solve(5.0 * c + keys @ keys.T, keys)
        change = ((goals - outputs) / (len(LAYERS) - index)).T @ directions.T  # (d, E f)
        add_side_by_side(plain, parameter, change)
    ledger = edited(model, "memit", facts)
    for layer in LAYERS:
        parameter = context.architecture.weight(layer)
        torch.testing.assert_close(side_by_side(model, parameter), side_by_side(plain, parameter), rtol=1e-8, atol=1e-9)
    kept = ledger.operations[0].deltas[context.architecture.weight(1)]
    assert kept.rank == 2 and kept.kind == "stacked"


@torch.no_grad()
def block_output(model, fact, layer):
    """(d,) what a block gives at the last token of a bare prompt's subject."""
    seen = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=torch.tensor([subject_ids(fact)]))
    handle.remove()
    return seen[0][0, -1]


@torch.no_grad()
def add_side_by_side(model, parameter, change):
    """W_s += change (d, E f), in the parameter's layout."""
    weight = model.get_parameter(parameter)
    blocks = torch.stack(change.chunk(len(weight), dim=1))
    transposed = hasattr(model.get_submodule(parameter.rpartition(".")[0]), "gate_up_proj_bias")
    weight.add_(blocks.mT if transposed else blocks)


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


# -------------------------------------------------------------------------------------- one expert is a dense MLP


def one_expert_and_its_twin():
    """A mixture of one expert, picked with a gate of 1, and the dense model it is the same as."""
    model = mixture_model("qwen3_moe", num_experts=1, num_experts_per_tok=1, norm_topk_prob=True)
    config = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    twin = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **(config | {"intermediate_size": INNER})))
    twin = twin.double().eval()
    state = {}
    for name, weight in model.state_dict().items():
        if name.endswith("mlp.gate.weight"):
            continue
        base = name.partition(".experts")[0]
        if name.endswith("gate_up_proj"):
            state[f"{base}.gate_proj.weight"], state[f"{base}.up_proj.weight"] = weight[0].chunk(2)
        elif name.endswith("experts.down_proj"):
            state[f"{base}.down_proj.weight"] = weight[0]
        else:
            state[name] = weight
    twin.load_state_dict(state)
    return model, twin


@pytest.mark.parametrize(
    ("editor", "options"),
    [
        ("memit", {}),
        ("memit", {"own_targets": True}),
        ("memit", {"norm_anchor": 3.0}),
        ("memit_seq", {"update_norm_lambda": 0.2}),
        ("alphaedit", {}),
        ("encore", {}),
        ("emmet", {}),
        ("rome", {"layers": [1], "mom2_adjustment": True}),
        ("r_rome", {"layers": [1]}),
        ("ft", {"layers": [1], "num_steps": 5, "lr": 1e-3}),
        ("ft", {"layers": [1], "num_steps": 5, "lr": 1e-3, "norm_constraint": 2e-3}),
    ],
)
def test_one_expert_with_a_gate_of_one_is_edited_as_a_dense_model(editor, options):
    model, twin = one_expert_and_its_twin()
    stacked = explicit_second_moments(model)
    moments = {name.replace("experts.down_proj", "down_proj"): moment[0] for name, moment in stacked.items()}
    one = editor in ("rome", "r_rome")
    steps = {} if editor == "ft" else {"v_num_grad_steps": 4}
    ledgers = [
        edit_model(
            each, tiny_tokenizer(), FACTS[:4], editor, edit_batch_size=1 if one else 2,
            options={"layers": LAYERS} | steps | options, second_moments=of, progress=False,
            context_templates=None if editor == "ft" else TEMPLATES if one else NESTED_TEMPLATES,
        )
        for each, of in ((model, stacked), (twin, moments))
    ]  # fmt: skip
    assert len(ledgers[0].operations) == (4 if one else 2)
    for mixed, dense in zip(*(ledger.operations for ledger in ledgers), strict=True):
        assert len(mixed.deltas) == len(dense.deltas) >= 1
        for (name, ours), (parameter, wanted) in zip(mixed.deltas.items(), dense.deltas.items(), strict=True):
            assert parameter == name.replace("experts.down_proj", "down_proj") + ".weight"
            found, wanted = ours.dense(torch.float64)[0], wanted.dense(torch.float64)
            assert (found - wanted).norm() <= 1e-12 * wanted.norm()


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
    torch.testing.assert_close(mixture_output(model, fact, 1), wanted, rtol=tolerance, atol=tolerance)
    ledger.restore()
    assert same_weights(model, kept)


@torch.no_grad()
def mixture_output(model, fact, layer):
    """(d,) the output of a whole mixture at the last token of a bare prompt's subject."""
    seen = []
    handle = model.model.layers[layer].mlp.register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=torch.tensor([subject_ids(fact)]))
    handle.remove()
    return seen[0].flatten(0, -2)[-1]


def test_rome_is_refused_where_no_expert_has_enough_of_the_gates():
    model = mixture_model("qwen3_moe")
    _, _, gates = plain_routing(model, subject_ids(FACTS[0]), 1)
    share = float(gates.max() / gates.sum())
    assert 0.5 <= share < 1
    options = {"layers": [1], "v_num_grad_steps": 2}
    with pytest.raises(UserError, match=rf"{share:.3f} of all, which is below min_gate={share + 0.005:g}"):
        edited(model, "rome", FACTS[:1], 1, options | {"min_gate": share + 0.005}, context_templates=TEMPLATES)
    assert edited(model, "rome", FACTS[:1], 1, options | {"min_gate": share - 0.005}, context_templates=TEMPLATES)


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


# ------------------------------------------------------------------------------------------- shared experts, refusals


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


@pytest.mark.parametrize(
    ("editor", "options", "why"),
    [
        ("kn", {}, "it scores the neurons of one MLP per layer"),
        ("lora", {"target_modules": ["q_proj"]}, "peft has none for slices of one tensor"),
        ("ultraedit", {"layers": [1]}, "one key and one output gradient per token of a linear map"),
        ("betaedit", {"layers": [1]}, "its null space is found anew from all earlier keys"),
    ],
)
def test_methods_that_cannot_edit_experts_say_why(editor, options, why):
    model = mixture_model("qwen3_moe")
    with pytest.raises(ConfigurationError, match=why) as caught:
        edit_model(model, tiny_tokenizer(), FACTS[:1], editor, options=options, progress=False)
    assert "Use editor=memit, memit_seq, alphaedit, rome or ft" in str(caught.value)


def test_edit_experts_is_checked():
    model = mixture_model("deepseek_v3")
    with pytest.raises(ConfigurationError, match="edit_experts='both': want shared or routed"):
        edited(model, "memit", options=ROUTED | {"edit_experts": "both"})
    with pytest.raises(ConfigurationError, match="edit_experts=routed: layers 0 of this model have no mixture"):
        edited(model, "memit", options=ROUTED | {"layers": [0]})


def test_moments_of_another_layout_are_refused():
    model = mixture_model("qwen3_moe")
    moments = {name: moment[0] for name, moment in explicit_second_moments(model).items()}
    with pytest.raises(UserError, match=r"has shape \(16, 16\), this model's 4 experts' keys have 16 dimensions"):
        edit_model(model, tiny_tokenizer(), FACTS[:1], "memit", options={"layers": [1]}, second_moments=moments,
                   progress=False)  # fmt: skip


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
