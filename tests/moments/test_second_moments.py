"""Second moments: factorisations are right, made once, and refused with the figure that is wrong."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.pretended_devices import PretendedDevices
from tests.support.tiny import FACTS, TEMPLATES, tiny_model, tiny_tokenizer

EIGENVALUES = torch.tensor([0.0, 1e-3, 1e-2, 0.5, 2.0, 7.0], dtype=torch.float64)


def moment() -> torch.Tensor:
    """A (6, 6) second moment with the eigenvalues above."""
    basis, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    return (basis * EIGENVALUES) @ basis.T


def test_cholesky_factors_c_and_c_with_a_ridge_once():
    moments = SecondMoments({"m": moment() + torch.eye(6)})
    for ridge in (0.0, 0.5):
        factor = moments.cholesky("m", ridge)
        torch.testing.assert_close(factor @ factor.T, moment() + (1 + ridge) * torch.eye(6))
        assert moments.cholesky("m", ridge) is factor
    assert torch.equal(moments["m"], moment() + torch.eye(6)), "the ridge is not added in place"


@pytest.mark.parametrize(("threshold", "r"), [(2e-3, 2), (2e-2, 3), (1.0, 4), (10.0, 6)])
def test_the_null_space_is_what_text_hardly_uses(threshold, r):
    moments = SecondMoments({"m": moment()})
    basis = moments.null_space("m", threshold)
    assert basis.shape == (6, r)
    torch.testing.assert_close(basis.T @ basis, torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close(basis.T @ moment() @ basis, torch.diag(EIGENVALUES[:r]), rtol=0, atol=1e-12)
    assert moments.null_space("m", threshold) is basis
    assert SecondMoments({"m": moment()}).null_space("m", threshold) is not basis, "nothing is kept in the process"


@pytest.mark.parametrize("factor", ["cholesky", "null_space"])
def test_a_factorisation_is_made_and_kept_on_the_device_it_is_used_on(factor):
    """C comes from a file, so to the CPU; a GPU factors it faster, and must not be sent the factor for every edit."""
    on_cpu = SecondMoments({"m": moment() + torch.eye(6)})
    wanted = getattr(on_cpu, factor)("m", 2.0)
    moments, made_on = SecondMoments({"m": (moment() + torch.eye(6)).float()}), []
    stock = {"cholesky": torch.linalg.cholesky_ex, "null_space": torch.linalg.eigh}[factor]
    with PretendedDevices() as devices, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.linalg,
            stock.__name__.removeprefix("linalg_"),
            lambda matrix: (made_on.append(matrix.device), stock(matrix))[1],
        )
        found = getattr(moments, factor)("m", 2.0, "cuda:1")
        once = devices.moved
        assert getattr(moments, factor)("m", 2.0, torch.device("cuda:1")) is found and devices.moved == once == 1
        assert found.device == torch.device("cuda:1") == made_on[0]
        other = getattr(moments, factor)("m", 2.0)
        assert other is not found and other.device == torch.device("cpu") and len(made_on) == 2
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "ask", "message"),
    [
        (
            moment() + torch.eye(6),
            lambda m: m.null_space("m", 2e-2),
            r"nullspace_threshold=0.02: .* between 1 and 8 with",
        ),
        (moment() - torch.eye(6), lambda m: m.cholesky("m"), r"m \(given\) is not positive definite: .* 6 dimensions"),
        (moment() / 0.0, lambda m: m.cholesky("m"), r"m \(given\) holds values that are not finite"),
        (moment(), lambda m: m["n"], r"second moments of n are needed; given has: m"),
    ],
)
def test_refusals(matrix, ask, message):
    with pytest.raises(UserError, match=message):
        ask(SecondMoments.load({"m": matrix}))


def test_another_models_second_moments_are_refused():
    with pytest.raises(UserError, match=r"has shape \(6, 6\), this model's keys have 96 dimensions"):
        edit_model(
            tiny_model(), tiny_tokenizer(), FACTS[:1], options={"layers": [1], "mom2_adjustment": True},
            context_templates=TEMPLATES, second_moments={"transformer.h.1.mlp.c_proj": moment()}, progress=False,
        )  # fmt: skip


def test_which_layers_there_are_is_known_without_the_model():
    moments = SecondMoments({"transformer.h.1.mlp.c_proj": torch.eye(2), "layers2.11.down": torch.eye(2)})
    assert [layer for layer in range(13) if moments.may_have(layer)] == [1, 11]
