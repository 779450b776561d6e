"""LoRA: what peft trains is what the deltas say, in either weight layout, and nothing of peft stays behind."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import GPT2Config, LlamaConfig, Phi3Config, Phi3ForCausalLM, Qwen2Config

from lm_eval_edit import ConfigurationError, UserError, edit_model
from lm_eval_edit.editors import lora
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.hyperparameters import presets, resolve
from lm_eval_edit.editors.lora import Lora, LoraOptions
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import temporarily_applied
from tests.support.tiny import (
    FACTS,
    LEARNABLE,
    same_weights,
    tiny_llama,
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

pytestmark = pytest.mark.libraries

OPTIONS = {"num_steps": 12, "rank": 4}
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 48, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip


def model_of(kind, dtype=torch.float32):
    if kind == "gpt2":
        return tiny_model(dtype)
    if kind == "llama":
        return tiny_llama(dtype, **SIZES)
    torch.manual_seed(0)
    return Phi3ForCausalLM(Phi3Config(**SIZES)).to(dtype).eval()


def edit(model, facts, batch=1, ledger=None, seed=0, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, "lora", batch, options=OPTIONS | options, ledger=ledger, seed=seed,
        progress=False,
    )  # fmt: skip


def context_of(model):
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model), (), SecondMoments())


@pytest.mark.parametrize("lora_type", ["lora", "adalora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3"])
def test_the_deltas_are_the_adapter_and_the_model_stays_as_it_was(monkeypatch, kind, lora_type):
    model = model_of(kind, torch.float64)
    model.get_input_embeddings().weight.requires_grad_(False)
    before = {
        "weights": weights_of(model), "modules": {n: id(m) for n, m in model.named_modules()}, "vars": set(vars(model)),
        "grads": [p.requires_grad for p in model.parameters()], "training": [m.training for m in model.modules()],
    }  # fmt: skip
    ids = torch.arange(1, 13)[None]
    adapted_logits, merged = [], lora._delta

    def spy(layer):  # called while the adapter is still there
        if not adapted_logits:
            model.eval()
            adapted_logits.append(model(ids).logits.detach())
        return merged(layer)

    monkeypatch.setattr(lora, "_delta", spy)
    plain = model(ids).logits.detach()
    state = torch.random.get_rng_state()
    options = LoraOptions(layers=(0, 1), num_steps=3, rank=4, lora_type=lora_type, lr=5e-3)
    deltas = Lora(options).compute(context_of(model), FACTS[:2]).deltas
    assert not any(tensor.requires_grad for delta in deltas.values() for tensor in delta.tensors().values())
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"

    assert same_weights(model, before["weights"]) and set(vars(model)) == before["vars"]
    assert {n: id(m) for n, m in model.named_modules()} == before["modules"]
    assert [p.requires_grad for p in model.parameters()] == before["grads"]
    assert [m.training for m in model.modules()] == before["training"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(ids).logits, plain)

    parts = {"gpt2": {"c_attn"}, "llama": {"q_proj", "v_proj"}, "phi3": {"qkv_proj"}}[kind]
    assert {name.split(".")[-2] for name in deltas} == parts and len(deltas) == 2 * len(parts)
    assert all(delta.rank == 4 for delta in deltas.values())
    with temporarily_applied(model, deltas):
        torch.testing.assert_close(model(ids).logits, adapted_logits[0])
    assert (plain - adapted_logits[0]).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize("lora_type", ["lora", "adalora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edit_takes_with_the_defaults_and_restores_bit_for_bit(dtype, lora_type):
    model, tokenizer = tiny_model(dtype), tiny_tokenizer()
    kept = weights_of(model)
    fact = LEARNABLE[0]
    assert not edit_answers(model, tokenizer, [fact])[0].exact
    assert LoraOptions().num_steps is None
    published = {"lora_type": "adalora", "lr": 5e-3, "num_steps": 70} if lora_type == "adalora" else {}
    ledger = edit_model(model, tokenizer, [fact], "lora", options=published, progress=False)
    assert edit_answers(model, tokenizer, [fact])[0].exact
    assert all(d.left.dtype == torch.float32 for d in ledger.operations[0].deltas.values())
    ledger.restore()
    assert same_weights(model, kept)


@pytest.mark.parametrize("lora_type", ["lora", "adalora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_deltas_are_numbers_that_hold_on_to_nothing(kind, lora_type):
    ledger = edit(model_of(kind), FACTS[:1], lora_type=lora_type, num_steps=1)
    tensors = [t for delta in ledger.operations[0].deltas.values() for t in delta.tensors().values()]
    assert tensors and not any(t.requires_grad for t in tensors)


def test_facts_of_a_batch_are_learnt_together():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ledger = edit(model, LEARNABLE, 2, num_steps=40, batch_size=2)
    assert len(ledger.operations) == 1
    assert all(answer.exact for answer in edit_answers(model, tokenizer, LEARNABLE))


def test_labels_are_the_targets_tokens_only():
    from lm_eval_edit.editors._shared.finetune import target_row

    model, tokenizer = tiny_model(), tiny_tokenizer()
    batch = lora._batch(model, [target_row(tokenizer, fact) for fact in FACTS[:3]])
    for r, fact in enumerate(FACTS[:3]):
        whole = tokenizer.encode(fact.text + fact.target)
        length = len(whole)  # what is right of it is padding, which a causal model does not look at
        assert batch["input_ids"][r, :length].tolist() == whole
        labelled = batch["labels"][r] != lora.IGNORED
        assert batch["labels"][r][labelled].tolist() == tokenizer.encode(fact.target)
        assert labelled.nonzero()[-1] == length - 1


def test_drawn_from_seed_and_facts_and_the_same_when_resumed(tmp_path):
    whole, resumed, other = tiny_model(), tiny_model(), tiny_model()
    edit(whole, FACTS[:2])
    edit(tiny_model(), FACTS[:1], ledger=tmp_path)
    torch.rand(7)  # other users of the global generator change nothing
    edit(resumed, FACTS[:2], ledger=tmp_path)
    assert same_weights(resumed, weights_of(whole))
    edit(other, FACTS[:2], seed=1)
    assert not same_weights(other, weights_of(whole))


def test_layers_and_target_modules_are_the_ones_asked_for():
    model = tiny_model()
    ledger = edit(model, FACTS[:1], layers=[1], target_modules="c_fc:attn.c_proj")
    assert set(ledger.operations[0].deltas) == {
        "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.attn.c_proj.weight"
    }  # fmt: skip


def test_a_failure_leaves_nothing_of_the_adapter(monkeypatch):
    model = tiny_model()
    kept, modules = weights_of(model), {n: id(m) for n, m in model.named_modules()}
    monkeypatch.setattr(lora, "_delta", lambda layer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit(model, FACTS[:1])
    assert same_weights(model, kept) and {n: id(m) for n, m in model.named_modules()} == modules
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer) for m in model.modules())


def test_presets_are_the_published_ones_and_all_layers_need_no_notice():
    found, problems = resolve(Lora, GPT2Config(n_embd=1600, n_layer=48), {})
    o = found.editor.options
    assert not problems and found.preset == "gpt2-xl" and not found.notices
    assert (o.lora_type, o.num_steps, o.target_modules, o.layers) == ("adalora", 30, ("c_attn",), tuple(range(48)))
    published = {
        "gpt-j-6b": ("adalora", 50, ["fc_in", "fc_out"]), "llama-3-8b": ("adalora", 70, ["q_proj", "v_proj"]),
        "llama-3.2-3b": ("adalora", 70, ["q_proj", "v_proj"]), "qwen2.5-7b": ("lora", 60, ["q_proj", "v_proj"]),
    }  # fmt: skip
    presets_of = {p.name: p.options for p in presets("lora")}
    for name, wanted in published.items():
        assert tuple(presets_of[name][o] for o in ("lora_type", "num_steps", "target_modules")) == wanted
    qwen = Qwen2Config(hidden_size=3584, num_hidden_layers=28)
    assert resolve(Lora, qwen, {})[0].preset == "qwen2.5-7b"
    easyedit = {
        "alg_name": "LoRA",
        "norm_constraint": False,
        "kl_factor": 0,
        "target_modules": ["q_proj"],
        "layers": [],
    }
    found, problems = resolve(Lora, LlamaConfig(**SIZES), easyedit)
    assert not problems and found.editor.options.layers == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_type": "dora"}, r"lora_type='dora': want lora or adalora"),
        ({"rank": 0}, r"rank=0: want at least 1"),
        ({"lora_dropout": 1}, r"lora_dropout=1.0: want a share of at least 0 and below 1"),
        ({"norm_constraint": 0.1}, r"norm_constraint=0.1: LoRA has none"),
        ({"kl_factor": 1}, r"kl_factor=1.0: LoRA has none"),
        ({"target_modules": 3}, r"target_modules=3: want module names, as a list or as q_proj:v_proj"),
        (
            {"target_modules": "q_proj"},
            r"target_modules=q_proj: give target_modules among .*: attn.c_attn, attn.c_proj",
        ),
        ({"layers": [5]}, r"layer 5 is out of range"),
    ],
)
def test_wrong_options_are_refused(options, message):
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises((ConfigurationError, UserError), match=message):
        edit(model, FACTS[:1], **options)
    assert same_weights(model, kept)


def test_a_model_whose_projections_have_no_known_names_asks_for_them(monkeypatch):
    monkeypatch.setattr(lora, "PEFT_TARGETS", {})
    with pytest.raises(UserError, match=r"peft knows no targets for gpt2: give target_modules among"):
        edit(tiny_model(), FACTS[:1])


@pytest.mark.parametrize(("enough", "given", "steps"), [(100.0, {}, 1), (0.0, {}, 70), (100.0, {"num_steps": 3}, 3)])
def test_without_a_number_of_passes_training_ends_when_the_loss_is_small(monkeypatch, enough, given, steps):
    monkeypatch.setattr(lora, "ENOUGH", enough)
    options = {"rank": 2, "layers": [1]} | given
    ledger = edit_model(tiny_model(), tiny_tokenizer(), LEARNABLE[:1], "lora", options=options, progress=False)
    assert ledger.operations[0].record["details"]["steps"] == steps
