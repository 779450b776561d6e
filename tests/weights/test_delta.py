"""Deltas as values: they equal the matrices they stand for, and come back from disk bit for bit."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import UserError
from lm_eval_edit.weights.delta import (
    DenseDelta,
    LowRankDelta,
    MaskedDelta,
    SparseDelta,
    linear_update,
)
from lm_eval_edit.weights.delta_files import load_deltas, save_deltas


def low_rank(rows=7, cols=5, rank=3, dtype=torch.float32) -> LowRankDelta:
    generator = torch.Generator().manual_seed(1)
    return LowRankDelta(
        torch.randn(rows, rank, generator=generator, dtype=dtype),
        torch.randn(rank, cols, generator=generator, dtype=dtype),
    )


def sparse(dim: int) -> SparseDelta:
    other = (7, 5)[1 - dim]
    values = torch.arange(2.0 * other).view(2, other) + 1
    return SparseDelta(torch.tensor([1, 4]), values, torch.tensor([7, 5, dim]))


def test_low_rank_is_its_product():
    delta = low_rank()
    torch.testing.assert_close(delta.dense(), delta.left @ delta.right)
    assert delta.shape == (7, 5) and delta.rank == 3
    assert delta.norm() == pytest.approx(float((delta.left @ delta.right).norm()), rel=1e-6)


def test_wrong_factors_name_both_shapes():
    with pytest.raises(ValueError, match=r"one rank r; got \(7, 3\) and \(4, 5\)"):
        LowRankDelta(torch.zeros(7, 3), torch.zeros(4, 5))


def test_compress_finds_the_true_rank_and_keeps_the_product():
    delta = low_rank(dtype=torch.float64)
    padded = LowRankDelta(torch.cat([delta.left, delta.left], 1), torch.cat([delta.right, delta.right], 0))
    assert padded.rank == 6
    small = padded.compress(1e-10)
    assert small.rank == 3
    torch.testing.assert_close(small.dense(torch.float64), padded.dense(torch.float64))


def test_svd_is_that_of_the_dense_matrix():
    delta = low_rank(dtype=torch.float64)
    u, s, vh = delta.svd()
    torch.testing.assert_close(s, torch.linalg.svdvals(delta.dense(torch.float64))[:3])
    torch.testing.assert_close((u * s) @ vh, delta.dense(torch.float64))
    torch.testing.assert_close(u.T @ u, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("cols", [5, 8, 17])
def test_masked_is_the_product_where_its_bits_are_set(cols, monkeypatch):
    monkeypatch.setattr("lm_eval_edit.weights.delta._BLOCK", 2 * cols)  # several blocks
    delta = low_rank(cols=cols)
    keep = torch.rand(7, cols, generator=torch.Generator().manual_seed(3)) < 0.4
    assert keep.any() and not keep.all()
    masked = MaskedDelta.masked(delta, keep)
    assert torch.equal(masked.keep(), keep) and masked.shape == delta.shape
    assert masked.mask.shape == (7, -(-cols // 8))
    torch.testing.assert_close(masked.dense(), delta.dense() * keep)
    assert masked.norm() == pytest.approx(float((delta.dense() * keep).norm()), rel=1e-6)
    assert masked.rank is None


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"of shape \(7, 5\) wants a uint8 mask of shape \(7, 1\); got torch.bool"):
        MaskedDelta(low_rank().left, low_rank().right, torch.ones(7, 5, dtype=torch.bool))


@pytest.mark.parametrize("transposed", [False, True])
def test_to_lora_and_linear_update_agree_on_orientation(transposed):
    generator = torch.Generator().manual_seed(2)
    inputs, outputs = torch.randn(5, 2, generator=generator), torch.randn(7, 2, generator=generator)
    delta = linear_update(transposed, inputs, outputs)
    assert delta.shape == ((5, 7) if transposed else (7, 5))
    lora_a, lora_b = delta.to_lora(transposed)
    torch.testing.assert_close(lora_b @ lora_a, outputs @ inputs.T)


@pytest.mark.parametrize("dim", [0, 1])
def test_sparse_touches_only_its_slices(dim):
    delta = sparse(dim)
    dense = delta.dense()
    untouched = [i for i in range((7, 5)[dim]) if i not in (1, 4)]
    assert not dense.index_select(dim, torch.tensor(untouched)).any()
    assert dense.index_select(dim, torch.tensor([1, 4])).all()
    assert delta.norm() == pytest.approx(float(delta.values.norm()))
    assert torch.equal(delta.to_low_rank().dense(), dense) and delta.to_low_rank().rank == 2


def test_sparse_with_wrong_values_says_what_was_wanted():
    with pytest.raises(ValueError, match=r"along dimension 0 wants values of shape \(2, 5\); got \(2, 7\)"):
        SparseDelta(torch.tensor([0, 1]), torch.zeros(2, 7), torch.tensor([7, 5, 0]))


def test_files_give_back_every_kind_and_the_state_bit_for_bit(tmp_path):
    masked = MaskedDelta.masked(low_rank(), torch.eye(7, 5, dtype=torch.bool))
    deltas = {
        "a.weight": low_rank(), "b.weight": sparse(1), "c:odd.bias": DenseDelta(torch.randn(4)), "d.weight": masked
    }  # fmt: skip
    state = {"keys": torch.randn(3, 3)}
    digest = save_deltas(tmp_path / "x.safetensors", deltas, state)
    found, found_state = load_deltas(tmp_path / "x.safetensors", digest)
    assert found.keys() == deltas.keys()
    for name, delta in deltas.items():
        assert type(found[name]) is type(delta)
        assert all(torch.equal(found[name].tensors()[field], t) for field, t in delta.tensors().items())
    assert torch.equal(found_state["keys"], state["keys"])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"], "no temporary file is left"


def test_damaged_file_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    digest = save_deltas(file, {"a": low_rank()})
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its sha256 is"):
        load_deltas(file, digest)
