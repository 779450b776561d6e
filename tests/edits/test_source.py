"""Loading a model that was edited: what cannot be done is told in a sentence, if possible before it loads."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from lm_eval_edit import UserError, demo
from lm_eval_edit.edits.source import load_source
from lm_eval_edit.export import ExportError
from lm_eval_edit.export.checkpoint import reloaded_logits
from tests.support.tiny import (
    FACTS,
    save_tiny,
    tiny_tokenizer,
)


@pytest.mark.parametrize("device", ["cuda:77", "cdua"])
def test_a_device_that_is_not_there_is_told_before_anything_loads(monkeypatch, device):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match=rf"device={device}: .*; want cpu, cuda, cuda:0, ... or auto"):
        load_source(demo.NAME, device=device)


def test_a_device_that_is_too_small_is_told_with_the_remedy(monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 5 GiB")

    monkeypatch.setattr(GPT2LMHeadModel, "to", full)
    with pytest.raises(UserError, match=r"device=cpu does not hold demo \(OutOfMemoryError: .*\); give device=auto"):
        load_source(demo.NAME, device="cpu")


def test_a_spread_model_with_offloaded_weights_is_refused(tmp_path, monkeypatch):
    """Where `device_map=auto` finds too little room it leaves layers on the disk, as the map here does."""
    save_tiny(tmp_path / "model", max_shard_size="20KB")
    placed = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    placed |= {f"transformer.h.{layer}": "disk" if layer == 2 else "cpu" for layer in range(3)}
    stock = functools.partial(AutoModelForCausalLM.from_pretrained, offload_folder=str(tmp_path / "offload"))

    def too_little_room(source, **options):
        assert options.pop("device_map") == "auto"
        return stock(source, device_map=placed, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", too_little_room)
    message = (
        r"parameters \(transformer.h.2.* are offloaded to disk or CPU and cannot be edited; use a device that holds"
    )
    with pytest.raises(UserError, match=message):
        load_source(str(tmp_path / "model"), device="auto")
    with pytest.raises(ExportError, match=message):
        reloaded_logits(tmp_path / "model", {}, tiny_tokenizer(), [fact.text for fact in FACTS], "auto")
