"""KN: equal to the published implementation, and true to the paper's own definitions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from lm_eval_edit import ConfigurationError, UserError, edit_model
from lm_eval_edit.editors._shared.last_token import LastTokenForward
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.kn import Kn, KnOptions
from lm_eval_edit.facts.fact import parse_record
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import (
    FACTS,
    same_weights,
    tiny_llama,
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

MODELS = ("gpt2-tiny", "llama-tiny")


def context_of(model, tokenizer=None) -> EditContext:
    return EditContext(model, tokenizer or tiny_tokenizer(), Architecture.discover(model), (), SecondMoments())


def edit(model, fact, **options):
    return edit_model(model, tiny_tokenizer(), [fact], "kn", options=options, progress=False)


# ----------------------------------------------------------------------------------- parity with the published editors


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_published_deltas(reference, name):
    info = json.loads((reference / "deltas" / f"KN_{name}.json").read_text())
    theirs = load_file(reference / "deltas" / f"KN_{name}.safetensors")
    folder = reference / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    architecture = Architecture.discover(model)
    for call, published in enumerate(info["calls"]):
        fact = parse_record(info["facts"][published["case_ids"][0]], "reference", str(call))
        ledger = edit_model(
            model, tokenizer, [fact], "kn", options=info["hparams"] | {"alg_name": "KN"}, progress=False
        )
        deltas = ledger.operations[0].deltas
        ledger.restore()
        neurons = [
            [layer, index]
            for layer in range(architecture.n_layers)
            if architecture.weight(layer) in deltas
            for index in deltas[architecture.weight(layer)].index.tolist()
        ]
        assert neurons == published["kn_neurons"][0]
        scores = published_scores(model, tokenizer, info, fact)
        expected = theirs[f"call{call}/kn_scores0"]
        assert (scores - expected).norm() / expected.norm() <= 1e-8
        reached = {key.removeprefix(f"call{call}/delta/") for key in theirs if key.startswith(f"call{call}/delta/")}
        assert reached == set(deltas)
        for parameter, delta in deltas.items():
            expected = theirs[f"call{call}/delta/{parameter}"]
            assert (delta.dense(torch.float64) - expected).norm() / expected.norm() <= 1e-8


def published_scores(model, tokenizer, info, fact):
    options = {name: info["hparams"][name] for name in ("steps", "adaptive_threshold")}
    return Kn(KnOptions(**options)).attributions(context_of(model, tokenizer), fact.text, fact.target_true)


# --------------------------------------------------------------------------------------------------- the attributions


def with_last(tensor, vector):
    return torch.cat([tensor[:, :-1], vector.view(1, 1, -1)], dim=1)


@pytest.mark.parametrize(
    "make", [lambda: tiny_model(torch.float64), lambda: tiny_llama(torch.float64)], ids=["gpt2", "llama"]
)
@pytest.mark.parametrize("outputs", [True, False], ids=["pre-activation", "activation"])
def test_the_last_token_alone_equals_the_whole_text(make, outputs):
    model = make()
    architecture = Architecture.discover(model)
    ids = tiny_tokenizer().encode(FACTS[3].text)
    layers = range(architecture.n_layers)
    gates = [architecture.gate_projection(model, layer) for layer in layers]
    sites = gates if outputs else architecture.down_projections
    forward = LastTokenForward(model, architecture, ids, sites, outputs=outputs)
    with torch.no_grad():
        torch.testing.assert_close(forward.logits, model(torch.tensor([ids])).logits[0, -1])
    for layer in layers:
        site = model.get_submodule(sites[layer])
        varied = torch.stack([forward.vectors[layer] * factor for factor in (0.0, 0.5, 1.0)])

        with torch.no_grad():
            alone = forward.varied([layer], varied[None])[0]
        for index, vector in enumerate(varied):
            if outputs:
                handle = site.register_forward_hook(lambda m, args, out, v=vector: with_last(out, v))
            else:
                handle = site.register_forward_pre_hook(lambda m, args, v=vector: (with_last(args[0], v),))
            with torch.no_grad():
                whole = model(torch.tensor([ids])).logits[0, -1]
            handle.remove()
            torch.testing.assert_close(alone[index], whole, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(alone[0], alone[2]), "the variation matters"
        if layer:  # with another layer's variants in the same pass
            lower = torch.stack([2 * forward.vectors[0]] * 3)
            if lower.shape == varied.shape:
                with torch.no_grad():
                    together = forward.varied([0, layer], torch.stack([lower, varied]))
                torch.testing.assert_close(together[1], alone, rtol=1e-10, atol=1e-10)
                assert not torch.allclose(together[0], alone)


def test_attributions_of_a_layer_add_up_to_what_its_activations_do():
    """Completeness of integrated gradients: Σ Attr(w) → P(w) − P(0) as the number of steps grows."""
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    context = context_of(model, tokenizer)
    prompt, (token,) = FACTS[0].text, tokenizer.encode("French")
    forward = LastTokenForward(
        model, context.architecture, tokenizer.encode(prompt), context.architecture.down_projections, outputs=False
    )
    with torch.no_grad():
        wanted = [
            float(
                (forward.logits.softmax(-1) - forward.varied([layer], 0 * vector[None, None])[0, 0].softmax(-1))[token]
            )
            for layer, vector in enumerate(forward.vectors)
        ]

    def error(steps):
        sums = Kn(KnOptions(variant="paper", steps=steps)).attributions(context, prompt, "French").sum(dim=1)
        return float((sums - torch.tensor(wanted, dtype=torch.float64)).norm() / torch.tensor(wanted).norm())

    assert max(abs(w) for w in wanted) > 1e-3
    assert error(2000) < 2e-3 < error(4)
    assert error(2000) < 0.2 * error(200), "the error of a Riemann sum falls with the number of steps"


def test_easyedit_takes_both_ends_of_the_integral_and_the_paper_the_upper_one():
    model = tiny_model(torch.float64)
    context, fact = context_of(model), FACTS[0]
    at_zero = Kn(KnOptions(steps=1)).attributions(context, fact.text, "French")
    assert at_zero.abs().sum() > 0, "one point is the factor 0, where the gradient stands"
    at_one = Kn(KnOptions(variant="paper", steps=1)).attributions(context, fact.text, "French")
    forward = LastTokenForward(
        model, context.architecture, tiny_tokenizer().encode(fact.text), context.architecture.down_projections,
        outputs=False,
    )  # fmt: skip
    vector = forward.vectors[2].clone().requires_grad_()
    (token,) = tiny_tokenizer().encode("French")
    forward.varied([2], vector[None, None]).softmax(-1)[0, 0, token].backward()
    torch.testing.assert_close(at_one[2], (vector * vector.grad).detach())


# ---------------------------------------------------------------------------------------------------------- the edits


@pytest.mark.parametrize("options", [{}, {"variant": "paper"}, {"variant": "paper", "operation": "erase"}], ids=str)
def test_only_the_chosen_rows_change_and_restore_is_bit_equal(options):
    model = tiny_model()
    kept = weights_of(model)
    ledger = edit(model, FACTS[0], **options)
    (operation,) = ledger.operations
    assert operation.deltas
    for name, parameter in model.named_parameters():
        changed = (parameter != kept[name]).flatten(1).any(dim=1) if parameter.ndim == 2 else parameter != kept[name]
        wanted = operation.deltas[name].index.tolist() if name in operation.deltas else []
        assert changed.nonzero()[:, 0].tolist() == wanted
    ledger.restore()
    assert same_weights(model, kept)


def test_linear_layers_change_by_columns():
    model = tiny_llama(torch.float64)
    kept = weights_of(model)
    ledger = edit(model, FACTS[0])
    for name, delta in ledger.operations[0].deltas.items():
        changed = (model.get_parameter(name) != kept[name]).any(dim=0)
        assert changed.nonzero()[:, 0].tolist() == delta.index.tolist()
        assert len(delta.index) < changed.numel()


def test_computing_an_edit_leaves_the_model_alone():
    model = tiny_model()
    kept, forwards = weights_of(model), [block.forward.__func__ for block in model.transformer.h]
    wanted = [p.requires_grad for p in model.parameters()]
    for variant in ("easyedit", "paper"):
        Kn(KnOptions(variant=variant, steps=3)).compute(context_of(model), [FACTS[2]])
    assert same_weights(model, kept)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert [block.forward.__func__ for block in model.transformer.h] == forwards
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_erased_neurons_are_zero_and_enhanced_ones_double():
    for operation, factor in (("erase", 0.0), ("enhance", 2.0)):
        model = tiny_model(torch.float64)
        kept = weights_of(model)
        ledger = edit(model, FACTS[0], variant="paper", operation=operation)
        for name, delta in ledger.operations[0].deltas.items():
            assert kept[name][delta.index].abs().sum() > 0
            torch.testing.assert_close(model.get_parameter(name)[delta.index], factor * kept[name][delta.index])


def test_erasing_lowers_the_answer_and_enhancing_raises_it():
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    fact = FACTS[0]
    (token,) = tokenizer.encode(fact.target_true)

    def probability():
        with torch.no_grad():
            return float(model(torch.tensor([tokenizer.encode(fact.text)])).logits[0, -1].softmax(-1)[token])

    before, after = probability(), {}
    for operation in ("erase", "enhance"):
        ledger = edit(model, fact, variant="paper", operation=operation)
        after[operation] = probability()
        ledger.restore()
    assert after["erase"] < before < after["enhance"]


def test_the_update_moves_from_the_old_embedding_to_the_new():
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    embedding = model.get_input_embeddings().weight.detach()
    ledger = edit(model, FACTS[0], variant="paper", lambda1=2.0, lambda2=3.0)
    old, new = (embedding[tokenizer.encode(text)[0]] for text in ("French", "Spanish"))
    for delta in ledger.operations[0].deltas.values():
        for row in delta.values:
            torch.testing.assert_close(row, 3 * new - 2 * old)


def test_easyedit_takes_a_single_token_twice_and_two_tokens_once():
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    embedding = model.get_input_embeddings().weight.detach()
    for target, factor in (("Spanish", 2), ("Spanish Czech", 1)):
        fact = replace(FACTS[0], target_new=target)
        text, answered = fact.text, []
        for _ in target.split():
            with torch.no_grad():
                answered.append(int(model(torch.tensor([tokenizer.encode(text)])).logits[0, -1].argmax()))
            text += tokenizer.decode(answered[-1])
        ledger = edit(model, fact)
        ledger.restore()
        wanted = embedding[tokenizer.encode(target)].sum(0) - factor * embedding[answered].sum(0)
        for delta in ledger.operations[0].deltas.values():
            torch.testing.assert_close(delta.values, wanted.expand_as(delta.values))


def test_neurons_must_be_shared_by_enough_prompts():
    model = tiny_model(torch.float64)
    context = context_of(model)
    fact = replace(FACTS[0], paraphrases=("{} was born in", "the city of Nils Albrecht"))

    def chosen(p):
        return Kn(KnOptions(variant="paper", p=p, steps=5))._paper_neurons(context, fact)

    any_of_them, two, all_three = chosen(0.0), chosen(0.34), chosen(0.67)
    assert (any_of_them >= two).all() and (two >= all_three).all()
    assert any_of_them.sum() > two.sum() > 0
    alone = Kn(KnOptions(variant="paper", steps=5))._paper_neurons(context, replace(fact, paraphrases=()))
    assert not torch.equal(alone, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_find_mostly_the_same_neurons(dtype):
    full = Kn(KnOptions())._easyedit_neurons(context_of(tiny_model()), FACTS[0])
    half = Kn(KnOptions())._easyedit_neurons(context_of(tiny_model(dtype)), FACTS[0])
    assert full.any()
    assert (full & half).sum() >= 0.8 * (full | half).sum()


# ------------------------------------------------------------------------------------------- architectures and mistakes


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "tanh"])
def test_the_gate_is_told_from_the_up_projection_by_what_it_does(activation):
    model = tiny_llama(torch.float64, hidden_act=activation)
    architecture = Architecture.discover(model)
    assert architecture.gate_projection(model, 1) == "model.layers.1.mlp.gate_proj"
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))
    assert architecture.gate_projection(model, 1) == "model.layers.1.mlp.up_proj", "names do not decide"
    assert architecture.mlp_projections(model, 1) == tuple(
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    )


def test_a_fused_gate_is_refused_and_the_paper_s_variant_needs_none():
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=48, initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = Phi3ForCausalLM(config).eval()
    with pytest.raises(UserError, match="fused gate and up"):
        edit(model, FACTS[0])
    assert edit(model, FACTS[0], variant="paper").operations[0].deltas


def test_facts_without_a_present_answer_are_refused_by_id():
    fact = replace(FACTS[0], target_true=None)
    with pytest.raises(ConfigurationError, match="fact 0: KN needs the present answer"):
        edit(tiny_model(), fact)
    kn = Kn(KnOptions())
    assert kn.fact_problem(replace(fact, prediction="French")) is None
    assert kn.fact_problem(replace(fact, prediction=" ")) is not None


def test_the_prediction_comes_before_the_true_answer():
    model = tiny_model(torch.float64)
    truth = Kn(KnOptions())._easyedit_neurons(context_of(model), FACTS[0])
    other = Kn(KnOptions())._easyedit_neurons(context_of(model), replace(FACTS[0], prediction="Prague"))
    assert not torch.equal(truth, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "original"}, "variant='original': want one of easyedit, paper"),
        ({"variant": "paper", "operation": "forget"}, "operation='forget': want one of update, erase, enhance"),
        ({"operation": "erase"}, "variant=easyedit only updates; give variant=paper"),
        ({"steps": 0}, "steps=0: want a whole number of at least 1"),
        ({"p": 1}, "p=1.0: want a share"),
        ({"adaptive_threshold": -0.1}, "adaptive_threshold=-0.1: want a share"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigurationError) as error:
        edit(tiny_model(), FACTS[0], **options)
    assert message in str(error.value)


def test_layers_and_batches_are_refused():
    model = tiny_model()
    _, problems = resolve(Kn, model.config, {}, layers=(1,))
    assert problems == ["edit_layers: kn is not told its layers; leave edit_layers out"]
    with pytest.raises(ConfigurationError, match="kn edits one fact at a time"):
        edit_model(model, tiny_tokenizer(), FACTS[:2], "kn", edit_batch_size=2, progress=False)


def test_presets_are_the_published_ones():
    model = tiny_model()
    model.config.n_embd, model.config.n_layer = 1600, 48
    found, problems = resolve(Kn, model.config, {"alg_name": "KN", "refine": False, "n_toks": 10, "lr_scale": 1.0})
    assert not problems and found.preset == "gpt2-xl"
    assert found.editor.options == KnOptions(steps=20, adaptive_threshold=0.2)
