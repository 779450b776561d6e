"""Updates of some experts of a mixture: each slice's own product, nothing anywhere else."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import UserError
from lm_eval_edit._support.files import save_tensors
from lm_eval_edit.weights.delta_files import flatten_deltas, kinds, load_deltas, save_deltas, unflatten_deltas
from lm_eval_edit.weights.stacked import SlicesDelta, StackedDelta, expert_update

SIZE = torch.tensor([5, 7, 3])


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stacked(shared: str = "") -> StackedDelta:
    left, right = (1 if shared == side else 2 for side in ("left", "right"))
    return StackedDelta(torch.tensor([4, 1]), drawn(left, 7, 2), drawn(right, 2, 3, seed=2), SIZE)


def slices() -> SlicesDelta:
    return SlicesDelta(torch.tensor([4, 1]), drawn(2, 7, 3), SIZE)


@pytest.mark.parametrize("shared", ["", "left", "right"])
def test_each_slice_gets_its_own_product_and_no_other_slice_anything(shared):
    delta, wanted = stacked(shared), torch.zeros(5, 7, 3)
    for i, expert in enumerate((4, 1)):
        wanted[expert] = delta.left[0 if shared == "left" else i] @ delta.right[0 if shared == "right" else i]
    assert delta.shape == (5, 7, 3) and delta.rank == 2 and delta.places == [4, 1]
    torch.testing.assert_close(delta.dense(), wanted)
    assert not delta.dense()[[0, 2, 3]].any() and delta.dense()[[1, 4]].all()
    assert delta.norm() == pytest.approx(float(wanted.double().norm()), rel=1e-6)


def test_dense_slices_are_what_they_are_given():
    delta = slices()
    assert torch.equal(delta.dense()[[4, 1]], delta.values) and not delta.dense()[[0, 2, 3]].any()
    assert delta.norm() == pytest.approx(float(delta.values.norm()), rel=1e-6)
    assert delta.rank is None and delta.shape == (5, 7, 3)


def test_a_slice_that_is_not_named_keeps_even_a_negative_zero():
    weight = torch.full((5, 7, 3), -0.0)
    for delta in (stacked(), slices()):
        delta.add_to_(weight)
    assert torch.signbit(weight[[0, 2, 3]]).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_an_update_of_maps_is_in_the_layout_of_the_parameter(transposed, shared):
    inputs, outputs = drawn(2, 3, 2), drawn(1 if shared else 2, 7, 2, seed=2)
    delta = expert_update(transposed, torch.tensor([0, 2]), inputs, outputs, 4)
    assert delta.shape == ((4, 3, 7) if transposed else (4, 7, 3))
    maps = delta.dense().mT if transposed else delta.dense()
    x = drawn(3, seed=3)
    for i, expert in enumerate((0, 2)):
        torch.testing.assert_close(maps[expert] @ x, outputs[0 if shared else i] @ (inputs[i].T @ x))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: StackedDelta(torch.tensor([1]), drawn(1, 7, 2), drawn(1, 3, 3), SIZE), r"one rank r; got \(1, 7, 2\)"),
        (lambda: StackedDelta(torch.tensor([1, 2, 3]), drawn(2, 7, 2), drawn(3, 2, 3), SIZE), r"left \(3 or 1, 7, r\)"),
        (lambda: StackedDelta(torch.tensor([1]), drawn(7, 2), drawn(2, 3), SIZE), r"got \(7, 2\) and \(2, 3\)"),
        (lambda: StackedDelta(torch.tensor([1, 1]), drawn(2, 7, 2), drawn(2, 2, 3), SIZE), r"0 to 4, each once; got"),
        (lambda: SlicesDelta(torch.tensor([5]), drawn(1, 7, 3), SIZE), r"0 to 4, each once; got \[5\]"),
        (lambda: SlicesDelta(torch.tensor([0]), drawn(1, 3, 7), SIZE), r"of shape \(1, 7, 3\); got \(1, 3, 7\)"),
        (lambda: SlicesDelta(torch.tensor([0]), drawn(1, 7), torch.tensor([1, 7])), r"a 3-D parameter; got \[1, 7\]"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_named(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_files_and_messages_give_both_kinds_back_bit_for_bit(tmp_path):
    deltas = {"a.experts.down_proj": stacked("left"), "b:odd.down_proj": slices()}
    digest = save_deltas(tmp_path / "x.safetensors", deltas)
    for found in (load_deltas(tmp_path / "x.safetensors", digest)[0], unflatten_deltas(flatten_deltas(deltas))):
        for name, delta in deltas.items():
            assert type(found[name]) is type(delta)
            assert all(torch.equal(found[name].tensors()[field], t) for field, t in delta.tensors().items())
    assert all(torch.equal(d.to("cpu").dense(), d.dense()) for d in deltas.values())


def test_a_files_kinds_are_in_its_header(tmp_path):
    file = tmp_path / "x.safetensors"
    save_deltas(file, {"a.experts.down_proj": stacked(), "b:odd": slices()}, {"keys": torch.ones(2)})
    assert kinds(file) == {"a.experts.down_proj": StackedDelta, "b:odd": SlicesDelta}
    save_tensors(file, {"weight": torch.ones(2)})
    with pytest.raises(UserError, match="holds other tensors than updates do: weight"):
        kinds(file)


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    whole = drawn(2, 7, 2)
    first = StackedDelta(torch.tensor([0, 1]), whole, drawn(2, 2, 3), SIZE)
    second = StackedDelta(torch.tensor([2]), whole[1:], drawn(1, 2, 3), SIZE)
    digest = save_deltas(tmp_path / "x.safetensors", {"a": first, "b": second})
    found = load_deltas(tmp_path / "x.safetensors", digest)[0]
    assert torch.equal(found["a"].left, whole) and torch.equal(found["b"].left, whole[1:])
