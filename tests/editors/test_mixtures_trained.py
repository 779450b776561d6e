"""LoRA and MEND on mixtures: linear maps that every token passes are theirs, beside experts that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lm_eval_edit import Facts, UserError, edit_model
from lm_eval_edit.cli import main
from lm_eval_edit.editors.mend.batch import exact_batch, gradient_factors
from lm_eval_edit.editors.mend.network import inner_module
from lm_eval_edit.editors.mend.training import default_inner_params, train_mend
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.weights.edited import temporarily_applied
from tests.support.mend_networks import both_ways
from tests.support.mixtures import every_mixture, every_routed, every_shared, mixture_model
from tests.support.tiny import FACTS, same_weights, save_tiny, tiny_tokenizer, weights_of, write_facts

pytestmark = pytest.mark.libraries

QUICK = MendTrainingSettings(rank=8, batch_size=2, val_facts=2, max_steps=2, val_interval=2, lr=1e-3)
MANY = tuple(replace(fact, id=str(n)) for n, fact in enumerate((*FACTS, *FACTS)))


def edited_names(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@every_mixture
@pytest.mark.parametrize("batch", [1, 2])
def test_lora_adapts_linear_maps_beside_the_experts(name, batch):
    model = mixture_model(name)
    before = weights_of(model)
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS[:2], "lora", batch, options={"num_steps": 2, "layers": [1, 2]}, progress=False
    )
    changed = edited_names(model, before)
    assert changed and all(".self_attn." in path and path.split(".")[2] in "12" for path in changed)
    ledger.restore()
    assert same_weights(model, before)


@every_shared
def test_of_a_name_that_experts_share_with_a_linear_map_lora_adapts_the_map(name):
    model = mixture_model(name)
    before = weights_of(model)
    options = {"num_steps": 2, "layers": [1, 2], "target_modules": ["down_proj"]}
    edit_model(model, tiny_tokenizer(), FACTS[:1], "lora", options=options, progress=False)
    assert edited_names(model, before) == {f"{Architecture.discover(model).mixtures[n].shared}.weight" for n in (1, 2)}


@every_mixture
def test_what_mend_is_trained_on_is_the_shared_expert(name):
    model = mixture_model(name)
    architecture = Architecture.discover(model)
    if architecture.mixtures[2].shared is None:
        with pytest.raises(UserError, match="layers 0, 1, 2 are mixtures of experts without a shared one"):
            default_inner_params(model)
        return
    names = default_inner_params(model)
    assert len(names) == 9 and len({path.split(".")[2] for path in names}) == 3
    assert all(path.rsplit(".", 2)[1] in ("gate_proj", "up_proj", "down_proj") for path in names)
    assert all(f"{architecture.down_projections[layer]}.weight" in names for layer in range(3))


@every_shared
def test_training_mend_on_a_mixture_makes_the_edits_that_the_editor_makes(tmp_path, name):
    """The low-rank forward equals the plain one with dense weights, also where the shared expert sees rows in one."""
    model, tokenizer, facts = mixture_model(name), tiny_tokenizer(), FACTS[:3]
    train_mend(model, tokenizer, Facts(MANY), tmp_path / "a", QUICK, progress=False, report=lambda line: None)
    both = both_ways(model, tmp_path / "a", facts, MANY, QUICK)
    assert both.editor.architecture_problems(both.context.architecture) == []
    for row, fact in enumerate(facts):
        deltas = both.editor.compute(both.context, [fact]).deltas
        with temporarily_applied(model, deltas), torch.no_grad():
            alone = both.batch.log_probs(model)
        at = both.batch.label_rows == row
        torch.testing.assert_close(both.together[at], alone[at], rtol=1e-6, atol=1e-8)
        assert (both.together[at] - both.unedited[at]).abs().max() > 1e-6


@every_routed
def test_mend_edits_the_linear_maps_that_it_is_told_and_refuses_experts(name):
    model, tokenizer = mixture_model(name), tiny_tokenizer()
    names = ["model.layers.2.self_attn.q_proj.weight"]
    module = inner_module(model, names[0])
    _, ((keys, gradient),) = gradient_factors(model, [module], exact_batch(tokenizer, FACTS[:2]))
    assert keys.shape[:2] == gradient.shape[:2] and len(keys) == 2
    with pytest.raises(UserError, match=r"down_proj \(4x\d+x\d+\) holds a mixture's experts"):
        inner_module(model, Architecture.discover(model).weight(1))


def test_training_refuses_a_mixture_before_its_weights_load(tmp_path, capsys, monkeypatch):
    save_tiny(tmp_path / "model")
    mixture_model("qwen3_moe", torch.float32).save_pretrained(tmp_path / "model")
    write_facts(tmp_path / "facts.jsonl", FACTS)
    monkeypatch.setattr("lm_eval_edit.edits.source.load_source", lambda *args: pytest.fail("loaded"))
    given = f"pretrained={tmp_path / 'model'},edit_dataset={tmp_path / 'facts.jsonl'}"
    command = ["train", "mend", "--model_args", given, "--device", "cpu", "--output", str(tmp_path / "a")]
    assert main(command) == 1
    assert "mixtures of experts without a shared one" in capsys.readouterr().err
    assert main([*command, "--inner_params", "model.layers.1.mlp.experts.down_proj"]) == 1
    assert "holds a mixture's experts" in capsys.readouterr().err


def test_training_mend_on_attention_of_a_mixture(tmp_path):
    model = mixture_model("qwen3_moe", torch.float32)
    settings = replace(QUICK, inner_params=("model.layers.2.self_attn.o_proj.weight",))
    train_mend(model, tiny_tokenizer(), Facts(MANY), tmp_path / "a", settings, progress=False, report=lambda line: None)
    before = weights_of(model)
    ledger = edit_model(model, tiny_tokenizer(), FACTS[:2], "mend", 2, options={"archive": str(tmp_path / "a")},
                        progress=False)  # fmt: skip
    assert edited_names(model, before) == set(settings.inner_params)
    ledger.restore()
    assert same_weights(model, before)
