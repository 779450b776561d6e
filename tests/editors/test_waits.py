"""What waits for a device is not asked in every pass: operations whose result's size, or value, the host must know."""

from __future__ import annotations

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lm_eval_edit.editors._shared import target
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.ft import Ft, FtOptions
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.blocks import BlockDiagonal
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.mixtures import mixture_model
from tests.support.tiny import FACTS, TEMPLATES, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.libraries

WAIT = ("_local_scalar_dense", "nonzero", "_unique2", "bincount", "masked_select", "equal", "is_nonzero")


class Counting(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self):
        super().__init__()
        self.seen = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def waits(run):
    with Counting() as counting:
        run()
    return {name: counting.seen[name] for name in WAIT if counting.seen[name]}


def context_of(model):
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model), TEMPLATES, SecondMoments())


def more_of(make):
    """What one more step waits for, of four."""
    few, many = waits(lambda: make(4)), waits(lambda: make(8))
    return {name: (count - few.get(name, 0)) / 4 for name, count in many.items() if count != few.get(name, 0)}


def test_a_step_of_the_target_optimisation(monkeypatch):
    monkeypatch.setattr(target, "STOP_LOSS", 0.0)
    context = context_of(tiny_llama())

    def edit(steps):
        Rome(RomeOptions(layers=(1,), v_num_grad_steps=steps)).compute(context, FACTS[:1])

    edit(4)  # what is known of the model is looked for the first time
    more = more_of(edit)
    assert more.pop("nonzero") == 1.0  # which requests have stopped: on a device every fifth step asks
    assert more.keys() <= {"_local_scalar_dense"}  # transformers asks a mask, Adam its count, which lies on the CPU


@pytest.mark.parametrize("objective", ["target_new", "prompt_last"])
def test_a_step_of_fine_tuning(monkeypatch, objective):
    monkeypatch.setattr("lm_eval_edit.editors.ft.STOP_LOSS", -1.0)
    context = context_of(tiny_llama())

    def edit(steps):
        options = FtOptions(layers=(1,), num_steps=steps, objective_optimization=objective, norm_constraint=1e-3)
        Ft(options).compute(context, FACTS[:1])

    assert more_of(edit).keys() <= {"_local_scalar_dense"}  # the loss as well


def test_experts_are_looked_at_at_once():
    model = mixture_model("qwen3_moe")
    mixture, generator = Architecture.discover(model).mixtures[1], torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 32, generator=generator, dtype=torch.float64)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(9)])
    index[index == 2] = 3  # one is not picked, another twice for some tokens
    gates = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        assert waits(lambda: list(mixture.each_picked(model, hidden, index, gates))) == {"bincount": 1}
        found = {expert: parts for expert, *parts in mixture.each_picked(model, hidden, index, gates)}
        assert list(found) == [0, 1, 3]
        for expert, (tokens, keys) in found.items():
            wanted, place = (index == expert).nonzero(as_tuple=True)
            assert torch.equal(tokens, wanted)
            own = mixture.expert_keys(model, expert, hidden[wanted]) * gates[wanted, place, None]
            torch.testing.assert_close(keys, own, rtol=0, atol=0)


def test_blocks_are_looked_at_at_once():
    blocks = BlockDiagonal([torch.eye(3) * n for n in range(1, 9)])
    columns = torch.arange(24.0)[:, None]
    columns[3:6] = 0
    assert sum(waits(lambda: blocks @ columns).values()) <= 1
    assert torch.equal((blocks @ columns)[:, 0], columns[:, 0] * torch.arange(1, 9).repeat_interleave(3))
