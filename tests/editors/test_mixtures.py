"""The stacked keys of a mixture and what is solved with them: plain implementations with whole matrices agree."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_edit import edit_model
from lm_eval_edit.editors._shared.goals import find_goals
from lm_eval_edit.editors._shared.keys import solve_normal_equations, subject_states
from lm_eval_edit.editors.alphaedit import AlphaEdit, AlphaEditOptions
from lm_eval_edit.editors.memit import MemitOptions
from lm_eval_edit.editors.memit_seq import MemitSeq, MemitSeqOptions
from tests.support.mixture_edits import LAYERS, context_of, edited, output_of, subject_ids
from tests.support.mixtures import (
    INNER,
    every_mixture,
    every_routed,
    explicit_second_moments,
    mixture_model,
    plain_key,
    side_by_side,
)
from tests.support.tiny import FACTS, NESTED_TEMPLATES, TEMPLATES, tiny_tokenizer

pytestmark = pytest.mark.libraries


def mean_key(model, fact, layer):
    """The mean over the template types of the mean stacked key over each type's templates."""
    types = [[plain_key(model, subject_ids(fact, each), layer) for each in kind] for kind in NESTED_TEMPLATES]
    return torch.stack([torch.stack(keys).mean(dim=0) for keys in types]).mean(dim=0)


def of_layer_1(name):
    """(context, name, all facts' stacked keys (E f, n), C as one matrix) of the experts of a second block."""
    context = context_of(mixture_model(name))
    module = context.architecture.down_projections[1]
    keys = subject_states(context, FACTS, [1], 1).keys[1]
    return context, module, keys, torch.block_diag(*context.second_moments[module])


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
    context, module, keys, whole = of_layer_1(name)
    found = solve_normal_equations(context.second_moments, module, 5.0, keys)
    torch.testing.assert_close((5.0 * whole + keys @ keys.T) @ found, keys, rtol=1e-10, atol=1e-12)


@every_routed
def test_memit_seq_and_alphaedit_solve_with_earlier_keys(name):
    context, module, keys, whole = of_layer_1(name)
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
        outputs = torch.stack([output_of(plain, "model.layers.2", fact) for fact in facts])
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
def add_side_by_side(model, parameter, change):
    """W_s += change (d, E f), in the parameter's layout."""
    weight = model.get_parameter(parameter)
    blocks = torch.stack(change.chunk(len(weight), dim=1))
    transposed = hasattr(model.get_submodule(parameter.rpartition(".")[0]), "gate_up_proj_bias")
    weight.add_(blocks.mT if transposed else blocks)


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
