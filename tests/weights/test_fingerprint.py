"""Fingerprints: of the bits alone, the same however they lie, and with the hash that a ledger was begun with."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
import xxhash
from torch import nn

from lm_eval_edit import UserError
from lm_eval_edit.weights import fingerprint
from lm_eval_edit.weights.delta import DenseDelta
from lm_eval_edit.weights.edited import EditedWeights
from lm_eval_edit.weights.fingerprint import (
    NEWEST,
    OLDEST,
    hash_named,
    model_fingerprint,
    parameter_hashes,
    parameter_sums,
    tensor_hash,
)
from tests.support.tiny import tiny_model

NAME = "transformer.h.1.mlp.c_proj.weight"


def bytes_of(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_a_tensors_hash_is_that_of_its_bytes_in_the_order_of_its_elements(dtype, monkeypatch):
    tensor = (torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    for each in (tensor, tensor.T, tensor[:, ::2], tensor[:0], tensor[0, 0]):
        wanted = xxhash.xxh3_128_hexdigest(bytes_of(each))
        assert tensor_hash(each) == wanted
        assert tensor_hash(each, OLDEST) == hashlib.sha256(bytes_of(each)).hexdigest()
        with monkeypatch.context() as smaller:
            smaller.setattr(fingerprint, "_CHUNK", 3)
            assert tensor_hash(each) == wanted, "some bytes at a time"


@pytest.mark.parametrize("name", [NEWEST, OLDEST])
def test_a_models_fingerprint_sees_every_element_name_shape_and_dtype(name, monkeypatch):
    def changed(change):
        model = tiny_model()
        with torch.no_grad():
            change(model)
        return model_fingerprint(model, name)

    def swap(model):
        w = model.get_parameter(NAME)
        w[3, 4], w[70, 1] = w[70, 1].clone(), w[3, 4].clone()

    def negate_zero(model):
        model.get_parameter(NAME)[0, 0] = -0.0

    def zero(model):
        model.get_parameter(NAME)[0, 0] = 0.0

    def reshape(model):
        w = model.get_parameter(NAME)
        model.get_submodule(NAME.rpartition(".")[0]).weight = nn.Parameter(w.view(w.shape[1], w.shape[0]))

    plain = changed(lambda model: None)
    assert plain == changed(lambda model: None) and len(plain) == {NEWEST: 32, OLDEST: 64}[name]
    others = [swap, negate_zero, zero, reshape, lambda model: model.to(torch.bfloat16)]
    found = [changed(other) for other in others]
    assert len({plain, *found}) == len(others) + 1
    with monkeypatch.context() as smaller:
        smaller.setattr(fingerprint, "_CHUNK", 7)
        assert changed(lambda model: None) == plain


def test_the_older_sums_are_what_they_were():
    """The exact form of release 0.1: position-dependent weights modulo 2⁶⁴."""
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.tensor([[1.5, -2.0], [0.0, 3.0]])))
    bits = model.w.detach().flatten().view(torch.int32).tolist()
    total = sum(b * (i * 0x9E3779B97F4A7C1 + 1 | 1) for i, b in enumerate(bits)) % (1 << 64)
    assert parameter_sums(model) == {"w": ["w", [2, 2], "torch.float32", total]}
    text = json.dumps([["w", [2, 2], "torch.float32", total]], separators=(",", ":"))
    assert model_fingerprint(model, OLDEST) == hashlib.sha256(text.encode()).hexdigest()
    assert parameter_hashes(model)["w"][:3] == parameter_sums(model)["w"][:3]


def test_edited_weights_are_hashed_where_they_changed_or_all():
    model = tiny_model()
    weights, other = EditedWeights(model), "transformer.h.2.mlp.c_proj.weight"
    shift = DenseDelta(torch.full((96, 32), 0.5))
    weights.apply({NAME: shift, other: shift})
    first = weights.fingerprint("base")
    model.get_parameter(other).data.add_(1)
    assert weights.fingerprint("base", unseen=False) == first, "it is not looked at"
    weights.apply({NAME: shift})
    part = weights.fingerprint("base", unseen=False)
    assert len({first, part, whole := weights.fingerprint("base")}) == 3
    assert weights.fingerprint("base", unseen=False) == whole
    copies = weights.copied([NAME])
    weights.apply({NAME: shift})
    weights.put_back(copies)
    assert weights.fingerprint("base", unseen=False) == weights.fingerprint("base") == whole
    weights.restore()
    assert weights.fingerprint("base") == "base"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_back_is_there_to_the_bit(dtype):
    model = tiny_model(dtype)
    weights, shift = EditedWeights(model), DenseDelta(torch.full((96, 32), 1e-4))
    weights.apply({NAME: shift})
    copies = weights.copied([NAME])
    weights.apply({NAME: DenseDelta(torch.full((96, 32), 7.0))})
    weights.put_back(copies)
    weights.apply({NAME: shift})
    other = tiny_model(dtype)
    wanted = EditedWeights(other)
    for _ in range(2):
        wanted.apply({NAME: shift})
    assert torch.equal(model.get_parameter(NAME), other.get_parameter(NAME)), "the exact sum too"


def test_what_names_no_hash_is_of_the_oldest():
    assert hash_named({}) == OLDEST and hash_named({"hash": NEWEST}) == NEWEST
    with pytest.raises(UserError, match="A later version wrote it"):
        hash_named({"hash": "blake4"})
