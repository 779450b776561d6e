"""BetaEdit: its solve against the plain one, AlphaEdit at its limits, the projector found anew, resume."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import ConfigurationError, edit_model
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.betaedit import BetaEdit, BetaEditOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import (
    FACTS,
    NESTED_TEMPLATES,
    same_weights,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

MODULE = "transformer.h.1.mlp.c_proj"
OPTIONS = {"layers": (0, 1), "v_num_grad_steps": 4, "nullspace_threshold": 0.1, "L2": 1e-2}


def edit(model, editor="betaedit", facts=FACTS, size=1, ledger=None, **more):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, size, options=OPTIONS | more, context_templates=NESTED_TEMPLATES,
        second_moments=tiny_second_moments(tiny_model(torch.float64)), ledger=ledger, progress=False,
    )  # fmt: skip


def difference(a, b):
    a, b = weights_of(a), weights_of(b)
    start = weights_of(tiny_model(torch.float64))
    return float(sum((a[n] - b[n]).norm() for n in a) / sum((b[n] - start[n]).norm() for n in a))


def test_without_text_inside_and_without_a_refresh_it_is_alphaedit():
    theirs, ours, text, anew = (tiny_model(torch.float64) for _ in range(4))
    edit(theirs, "alphaedit")
    edit(ours, mom2_update_weight=0, refresh_every=None)
    assert difference(ours, theirs) <= 1e-8
    edit(text, mom2_update_weight=1.0, refresh_every=None)
    assert difference(text, theirs) > 1e-3
    edit(anew, mom2_update_weight=0, refresh_every=2)
    assert difference(anew, theirs) > 1e-3


@pytest.mark.parametrize(("every", "groups"), [(None, []), (100, []), (3, [4]), (2, [2, 4]), (1, [2, 4, 5])])
def test_the_solve_is_the_plain_one_with_the_projector_of_the_last_refresh(every, groups):
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(torch.float64)
    moment = tiny_second_moments(model)[MODULE]
    weight, ridge, threshold = 0.7, 0.3, 0.1
    editor = BetaEdit(
        BetaEditOptions(
            layers=(1,), L2=ridge, mom2_update_weight=weight, nullspace_threshold=threshold, refresh_every=every
        )
    )
    context = EditContext(
        model, tiny_tokenizer(), Architecture.discover(model), NESTED_TEMPLATES, SecondMoments({MODULE: moment})
    )
    parts = [torch.randn(96, n, generator=generator, dtype=torch.float64) for n in (2, 2, 1)]
    keys = torch.randn(96, 3, generator=generator, dtype=torch.float64)
    history = [{f"{MODULE}.keys": part} for part in parts]
    seen = torch.cat(parts, dim=1)
    mixed = moment
    if groups:
        first = seen[:, : groups[-1]]
        mixed = (first @ first.T / groups[-1] + weight * moment) / (weight + 1)
    values, vectors = torch.linalg.eigh(mixed)
    u = vectors[:, values < threshold]
    p = u @ u.T
    system = p @ (keys @ keys.T + seen @ seen.T + weight * moment) + ridge * torch.eye(96, dtype=torch.float64)
    wanted = torch.linalg.solve(system, p @ keys)
    assert 0 < u.shape[1] < 96
    found = editor._directions(context, 1, keys, history)
    assert (found - wanted).norm() <= 1e-9 * wanted.norm()


def test_a_stopped_run_goes_on_to_the_bit_over_a_refresh(tmp_path):
    fresh, resumed = tiny_model(), tiny_model()
    edit(fresh, refresh_every=2, mom2_update_weight=0.1)
    edit(tiny_model(), facts=FACTS[:3], refresh_every=2, mom2_update_weight=0.1, ledger=tmp_path)
    ledger = edit(resumed, refresh_every=2, mom2_update_weight=0.1, ledger=tmp_path)
    assert same_weights(resumed, weights_of(fresh))
    assert ledger.operations[0].deltas[f"{MODULE}.weight"].rank == 1
    ledger.restore()
    assert same_weights(resumed, weights_of(tiny_model()))


def test_what_is_not_given_comes_from_the_model():
    ledger = edit(tiny_model(), facts=FACTS[:2], size=2, L2=None, nullspace_threshold=None)
    found = ledger.operations[0].record["details"]["from_model"]
    assert set(found) == {"L2", "nullspace_threshold", "mom2_update_weight"} and all(v > 0 for v in found.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mom2_update_weight": -1}, "mom2_update_weight=-1: want a number of at least 0"),
        ({"refresh_every": 0}, "refresh_every=0: want a whole number of at least 1, or none"),
        ({"L2": 0}, "L2=0: want a positive number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        edit(tiny_model(), facts=FACTS[:1], **options)
