"""Training passes that begin at the lowest trained block give what whole passes give, and run the blocks below once."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from lm_eval_edit.editors._shared.above import Above
from lm_eval_edit.editors._shared.finetune import padded, target_row
from lm_eval_edit.models.architecture import Architecture
from tests.support.tiny import FACTS, tiny_llama, tiny_model, tiny_tokenizer

MODELS = {"gpt2": tiny_model, "llama": tiny_llama}
START = 2


class World:
    """A tiny model with its rows, and how often each of its blocks has run."""

    def __init__(self, kind: str, **how):
        self.model = MODELS[kind](torch.float64)
        self.architecture = Architecture.discover(self.model)
        tokenizer = tiny_tokenizer()
        self.rows = [target_row(tokenizer, fact) for fact in FACTS]
        self.above = Above(self.model, self.architecture, [len(row.ids) for row in self.rows], START, **how)
        self.ran = [0] * len(self.architecture.blocks)  # a block that is passed by is called, its MLP is not
        for number, path in enumerate(self.architecture.down_projections):
            self.model.get_submodule(path).register_forward_hook(lambda *_, n=number: self.count(n))
        self.name = self.architecture.weight(START)
        self.weight = self.model.get_parameter(self.name).detach()

    def count(self, number: int) -> None:
        self.ran[number] += 1

    def batch(self, numbers):
        return padded(self.model, [self.rows[i] for i in numbers])

    def both(self, numbers, scale: float = 1.0):
        """(logits, gradient) of a pass that may begin above, and of a whole one, with a weight of its own."""
        found, batch = [], self.batch(numbers)
        for whole in (False, True):
            weight = (scale * self.weight).requires_grad_()
            if whole:
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
                logits = functional_call(self.model, {self.name: weight}, kwargs=inputs).logits
                logits = logits[batch.label_rows, batch.label_columns]
            else:
                logits = self.above.label_logits(batch, numbers, {self.name: weight})
            (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), weight)
            found += [logits.detach(), gradient]
        return found


@pytest.mark.parametrize("kind", MODELS)
def test_a_pass_from_above_is_the_whole_pass_in_whatever_batch_a_row_stands(kind):
    world = World(kind)
    # Rows of different lengths, seen alone first, then together, in another order, and padded to another width.
    for numbers, scale in (([0], 1.0), ([1, 2], 1.0), ([3], 0.5), ([3, 0, 2, 1], 1.5), ([1], 0.7)):
        ours, gradient, theirs, wanted = world.both(numbers, scale)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
    other = world.both([3, 0, 2, 1], 1.0)[0]
    assert (other - world.both([3, 0, 2, 1], 1.5)[0]).abs().max() > 1e-3, "the given weight is the one that runs"


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_below_run_once_for_each_row_and_those_above_every_time(kind):
    world, weights = World(kind), None
    weights = {world.name: world.weight}
    for numbers in ([0, 1], [2, 3], [0, 1], [3, 1, 2, 0]):
        world.above.label_logits(world.batch(numbers), numbers, weights)
    assert world.ran == [2] * START + [4] * (len(world.ran) - START)


def test_rows_beyond_the_room_there_is_go_through_the_whole_model_with_the_same_result():
    one_row = len(World("gpt2").rows[0].ids) * 32 * 8
    world = World("gpt2", limit=one_row)
    weights = {world.name: world.weight}
    for _ in range(2):
        for numbers in ([0], [1]):
            world.above.label_logits(world.batch(numbers), numbers, weights)
    assert world.ran[0] == 3, "the first row is kept, the second is not"
    ours, _, theirs, _ = world.both([0, 1])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_models_own_forward_is_back_after_a_pass_and_after_an_error():
    world = World("gpt2")
    batch, weights = world.batch([0]), {world.name: world.weight}
    world.above.label_logits(batch, [0], weights)
    with pytest.raises(RuntimeError):
        world.above.label_logits(batch, [0], {world.name: world.weight[:, :3]})
    blocks = [world.model.get_submodule(path) for path in world.architecture.blocks]
    assert all("forward" not in vars(block) for block in blocks)
