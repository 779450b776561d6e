"""An export is checked before it appears: tampered, empty and ignored ones are refused, wrong input is told at once."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lm_eval_edit import ConfigurationError, UserError, edit_model
from lm_eval_edit.export import ExportError, check, checkpoint, export
from lm_eval_edit.export import adapter as adapters
from lm_eval_edit.facts.exported import RECORD
from lm_eval_edit.weights.delta import LowRankDelta
from tests.support.export_world import make_world
from tests.support.tiny import (
    LEARNABLE,
    TEMPLATES,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)

pytestmark = pytest.mark.libraries


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("export"))


def tamper(folder, how):
    """Change the adapter in a folder."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    if how == "scaled":
        tensors = {key: tensor * (1.001 if "lora_B" in key else 1) for key, tensor in tensors.items()}
    elif how == "zero":
        tensors = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    elif how == "one zero":
        tensors = {key: tensor * ("h.1." not in key) for key, tensor in tensors.items()}
    elif how == "empty":
        tensors = {}
    elif how == "renamed":  # what an engine with other module names would see
        tensors = {key.replace("transformer.h", "model.layers"): tensor for key, tensor in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    if how == "twice":
        config["lora_alpha"] *= 2
    elif how == "left out":
        config["target_modules"] = [name for name in config["target_modules"] if "h.1." not in name]
    elif how == "elsewhere":
        config["target_modules"].append("transformer.h.2.mlp.c_proj")
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("ledger", ["memit", "memit-float16", "memit-bfloat16"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("scaled", r"the adapter of transformer\.h\.[01]\.mlp\.c_proj\.weight is off by 0\.001 of"),
        ("zero", r"the adapter of transformer\.h\.[01]\.mlp\.c_proj\.weight is off by 1 of"),
        ("one zero", r"the adapter of transformer\.h\.1\.mlp\.c_proj\.weight is off by 1 of"),
        ("empty", "is off by 1 of"),
        ("renamed", "is off by 1 of"),
        ("twice", "is applied 2 times over"),
        ("left out", r"is ignored for transformer\.h\.1\.mlp\.c_proj\.weight"),
        ("elsewhere", r"changes transformer\.h\.2\.mlp\.c_proj\.weight, which no edit has touched"),
    ],
)
def test_a_tampered_adapter_fails_and_is_not_kept(world, tmp_path, monkeypatch, ledger, how, message):
    written = adapters.write_adapter

    def tampered(model, adapter, folder, *base):
        written(model, adapter, folder, *base)
        tamper(folder, how)

    monkeypatch.setattr("lm_eval_edit.export.writing.write_adapter", tampered)
    with pytest.raises(ExportError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(world / ledger, "peft", tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    monkeypatch.undo()
    export(world / ledger, "peft", tmp_path / "out", device="cpu")
    check(world / ledger, tmp_path / "out", device="cpu")
    tamper(tmp_path / "out", how)
    with pytest.raises(ExportError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(world / ledger, tmp_path / "out", device="cpu")


@pytest.mark.parametrize("ledger", ["memit", "memit-float16", "memit-bfloat16"])
def test_an_adapter_that_the_engine_holds_and_does_not_use_fails(world, tmp_path, monkeypatch, ledger):
    """As with adapters that were disabled, or that were merged into weights that were loaded anew afterwards."""
    stock = adapters.load_adapter

    def disabled(model, folder):
        adapted = stock(model, folder)
        adapted.base_model.disable_adapter_layers()
        return adapted

    monkeypatch.setattr("lm_eval_edit.export.writing.load_adapter", disabled)
    with pytest.raises(ExportError, match="answers like the unedited model"):
        export(world / ledger, "peft", tmp_path / "out", device="cpu")


@pytest.mark.parametrize(("dtype", "v_lr"), [(torch.float16, 3e-4), (torch.bfloat16, 2e-3)])
def test_small_edits_in_half_precision_are_exported_exactly(tmp_path, dtype, v_lr):
    """Rounding moves the logits by as much as these edits do, which is no reason to refuse an exact adapter."""
    save_tiny(tmp_path / "model", tiny_model(dtype))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    options = {"v_num_grad_steps": 2, "v_lr": v_lr, "layers": [1], "context_templates": list(TEMPLATES)}
    edit_model(model, tiny_tokenizer(), LEARNABLE, "rome", options=options, ledger=tmp_path / "ledger", progress=False)
    record = export(tmp_path / "ledger", "peft", tmp_path / "out", device="cpu")
    assert record["check"]["difference"] > 0.5 * record["check"]["effect"], "or this would show nothing"
    assert "no bound: in half precision" in (tmp_path / "out" / "README.md").read_text()


def test_a_tampered_checkpoint_fails_and_the_weight_is_named(world, tmp_path):
    export(world / "rome", "hf", tmp_path / "out", device="cpu")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.2.ln_1.weight"][0] += 1e-6
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"other weights than the edited model: transformer\.h\.2\.ln_1\.weight"):
        check(world / "rome", tmp_path / "out", device="cpu")


def test_tampered_deltas_fail(world, tmp_path):
    export(world / "rome", "deltas", tmp_path / "out", device="cpu")
    file = tmp_path / "out" / "deltas.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="is damaged"):
        check(world / "rome", tmp_path / "out", device="cpu")


def spoil_tokenizer(folder, how):
    file = folder / "tokenizer.json"
    if how == "deleted":
        for each in folder.glob("*token*"):
            each.unlink()
    elif how == "damaged":
        file.write_text(file.read_text()[:100])
    else:
        content = json.loads(file.read_text())
        entries = content["model"]["vocab"]
        entries["of"], entries["mother"] = entries["mother"], entries["of"]
        file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("scrambled", r"its tokenizer makes \[.*\] of 'The mother tongue of Nils Albrecht', the unedited model's \["),
        ("deleted", "failed its check .*(its tokenizer makes|cannot be loaded)"),
        ("damaged", "failed its check .*cannot be loaded"),
    ],
)
def test_a_checkpoint_with_another_tokenizer_fails(world, tmp_path, monkeypatch, how, message):
    stock = checkpoint.write_checkpoint

    def spoilt(model, tokenizer, folder):
        stock(model, tokenizer, folder)
        spoil_tokenizer(folder, how)

    monkeypatch.setattr("lm_eval_edit.export.writing.write_checkpoint", spoilt)
    with pytest.raises(ExportError, match=message):
        export(world / "rome", "hf", tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    monkeypatch.undo()
    export(world / "rome", "hf", tmp_path / "out", device="cpu")
    spoil_tokenizer(tmp_path / "out", how)
    with pytest.raises(ExportError, match=message):
        check(world / "rome", tmp_path / "out", device="cpu")


def test_an_export_of_other_edits_is_told_apart_before_anything_loads(world, tmp_path, monkeypatch):
    export(world / "rome", "peft", tmp_path / "out", device="cpu")
    monkeypatch.setattr("lm_eval_edit.export.writing.load", None)
    with pytest.raises(UserError, match=r"is not an export of .*: editor is 'rome' in the export, 'memit' now"):
        check(world / "memit", tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match=r"model is '.*' in the export, '.*' now"):
        check(world / "memit-float16", tmp_path / "out", device="cpu")


@pytest.mark.parametrize("to", ["hf", "peft", "deltas"])
def test_a_check_writes_nothing(world, tmp_path, to):
    written = export(world / "rome", to, tmp_path / "out", device="cpu")

    def files():
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "out").iterdir()}

    before = files()
    found = check(world / "rome", tmp_path / "out", device="cpu")
    assert files() == before
    assert found["check"]["prompts"] == 4 and found["fingerprint"] == written["fingerprint"]


@pytest.mark.parametrize("to", ["hf", "peft", "deltas"])
def test_a_machine_that_rounds_differently_compares_answers(world, tmp_path, monkeypatch, caplog, to):
    export(world / "rome", to, tmp_path / "out", device="cpu")

    stock = LowRankDelta.add_to_

    def last_bits(delta, weight):
        stock(delta, weight)
        weight[:] = torch.nextafter(weight, weight.new_tensor(float("inf")))

    monkeypatch.setattr(LowRankDelta, "add_to_", last_bits)
    found = check(world / "rome", tmp_path / "out", device="cpu")
    assert found["fingerprint"] != json.loads((tmp_path / "out" / RECORD).read_text())["fingerprint"]
    assert "the replayed weights differ from those recorded in" in caplog.text
    assert "its answers are compared, not its bits" in caplog.text
    if to == "hf":
        file = tmp_path / "out" / "model.safetensors"
        tensors = load_file(file)
        tensors["transformer.h.1.mlp.c_proj.weight"] *= 1.01
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ExportError, match="does not answer like the edited model"):
            check(world / "rome", tmp_path / "out", device="cpu")


def test_an_adapter_names_its_base_and_the_revision(world, tmp_path):
    base = str(world / "model")
    export(world / "rome", "peft", tmp_path / "out", device="cpu", pretrained=base, revision="a1b2c3")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (base, "a1b2c3")
    export(world / "rome", "peft", tmp_path / "other", device="cpu")
    assert json.loads((tmp_path / "other" / "adapter_config.json").read_text())["revision"] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype(tmp_path, dtype):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.to(dtype).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    options = {"v_num_grad_steps": 10, "layers": [1], "context_templates": list(TEMPLATES), "clamp_norm_factor": 8}
    edit_model(model, tokenizer, LEARNABLE, "rome", options=options, ledger=tmp_path / "ledger", progress=False)
    record = export(tmp_path / "ledger", "hf", tmp_path / "hf", device="cpu")
    assert record["base"]["dtype"] == str(dtype).removeprefix("torch.")
    saved = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {dtype} and "lm_head.weight" not in saved  # tied
    export(tmp_path / "ledger", "peft", tmp_path / "peft", device="cpu")
    assert {t.dtype for t in load_file(tmp_path / "peft" / "adapter_model.safetensors").values()} == {torch.float32}


# --------------------------------------------------------------------------------------------------------- wrong inputs


def test_all_problems_are_told_at_once_and_nothing_is_overwritten(world, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(ConfigurationError) as caught:
        export(world / "memit", "pfet", tmp_path / "out", n_edits=3, rank=0)
    assert len(caught.value.problems) == 5
    text = str(caught.value)
    assert "the nearest that do end at 2 and 4 facts (4 in all)" in text and "nothing is overwritten" in text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_model_must_be_the_edited_one(world, tmp_path):
    other = tiny_model(seed=1)
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    for given in ({"pretrained": str(tmp_path / "other")}, {"dtype": "bfloat16"}):
        with pytest.raises(UserError, match="is not the model that"):
            export(world / "rome", "hf", tmp_path / "out", device="cpu", **given)
    assert not (tmp_path / "out").exists()


def test_a_ledger_without_a_model_wants_one(world, tmp_path):
    edit_model(
        tiny_model(), tiny_tokenizer(), LEARNABLE, "rome", ledger=tmp_path / "ledger", progress=False,
        options={"v_num_grad_steps": 5, "layers": [1], "context_templates": list(TEMPLATES)},
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="does not say which model it edits; give pretrained="):
        export(tmp_path / "ledger", "hf", tmp_path / "out")
    record = export(tmp_path / "ledger", "hf", tmp_path / "out", pretrained=str(world / "model"), device="cpu")
    assert record["base"]["pretrained"] == str(world / "model")


def test_no_ledger(tmp_path):
    with pytest.raises(ConfigurationError, match="is no ledger"):
        export(tmp_path / "absent", "hf", tmp_path / "out")
