"""Passes that run what an edit can change and what is read, and nothing else, give what whole passes give."""

from __future__ import annotations

import collections
import itertools
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from transformers import Gemma2Config, Gemma2ForCausalLM

from lm_eval_edit.editors._shared.above import KEPT_BATCHES, Above
from lm_eval_edit.editors._shared.finetune import padded, target_row
from lm_eval_edit.editors._shared.groups import in_groups
from lm_eval_edit.editors._shared.head import reading
from lm_eval_edit.editors.ft import _batch
from lm_eval_edit.models.architecture import Architecture
from tests.support.mixtures import MIXTURES, mixture_model
from tests.support.tiny import FACTS, tiny_llama, tiny_model, tiny_tokenizer

MODELS = {"gpt2": tiny_model, "llama": tiny_llama}
START = 2


class World:
    """A tiny model with its rows, and how often each of its blocks has run."""

    def __init__(self, kind: str, **how):
        self.model = MODELS[kind](torch.float64).requires_grad_(False)
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


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_block_computes_before_its_trained_weight_runs_once_for_each_row(kind):
    world, calls = World(kind), collections.Counter()
    block = world.model.get_submodule(world.architecture.blocks[START])
    for path, module in block.named_modules():
        if not list(module.children()):
            own = module.forward
            module.forward = lambda *args, _own=own, _path=path, **given: (calls.update([_path]), _own(*args, **given))[
                1
            ]
    weights = {world.name: world.weight}
    for numbers in ([0, 1], [2, 3], [0, 1], [3, 1, 2, 0]):
        world.above.label_logits(world.batch(numbers), numbers, weights)
    above = {world.architecture.down_projections[START].removeprefix(f"{world.architecture.blocks[START]}.")}
    steady = {path for path, count in calls.items() if count == 2}
    again = {path for path, count in calls.items() if count == 4}
    assert steady | again == calls.keys() and above <= again
    assert {path.rsplit(".", 1)[-1] for path in steady} >= {
        "gpt2": {"c_attn", "c_fc", "ln_1", "ln_2"}, "llama": {"q_proj", "up_proj", "gate_proj", "input_layernorm"},
    }[kind]  # fmt: skip
    for module in block.modules():
        assert "forward" in vars(module) or list(module.children()), "what had a forward of its own has it again"


@pytest.mark.parametrize("layers", [(1,), (1, 2)], ids=["one", "two"])
@pytest.mark.parametrize("name", MIXTURES)
def test_steady_parts_of_mixtures_and_of_what_is_trained_in_several_layers(name, layers):
    model = mixture_model(name).requires_grad_(False)
    architecture, tokenizer = Architecture.discover(model).routed(), tiny_tokenizer()
    rows = [target_row(tokenizer, fact) for fact in FACTS[:3]]
    names = [architecture.weight(layer) for layer in layers]
    above = Above(model, architecture, [len(row.ids) for row in rows], 1)
    for numbers, scale in (([0], 1.0), ([2, 1], 0.7), ([1, 0, 2], 1.3)):
        batch, found = padded(model, [rows[i] for i in numbers]), []
        for whole in (True, False):
            weights = {n: (model.get_parameter(n).detach() * scale).requires_grad_() for n in names}
            if whole:
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
                logits = functional_call(model, weights, kwargs=inputs).logits[batch.label_rows, batch.label_columns]
            else:
                logits = above.label_logits(batch, numbers, weights)
                assert above._steady.knows(numbers) or numbers != [1, 0, 2], (
                    "the last pass computes nothing steady again"
                )
            found.append([logits, *torch.autograd.grad(logits.logsumexp(-1).sum(), list(weights.values()))])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def positions_of(*modules):
    """How many positions each call of each module runs at, and what ends the counting."""
    seen = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda _, args, output, found=found: found.append(args[0].shape[:-1].numel()))
        for module, found in zip(modules, seen, strict=True)
    ]
    return seen, handles


@pytest.mark.parametrize("layers", [(1,), (1, 2), (2,)], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_where_labels_stand_together_is_read_once_and_the_last_mlp_runs_there_alone(kind, layers):
    """Several tokens at the prompt's end, as FT-L scores them: rows of unequal lengths, in several batches."""
    model = MODELS[kind](torch.float64).requires_grad_(False)
    architecture, tokenizer = Architecture.discover(model), tiny_tokenizer()
    rows = [replace(target_row(tokenizer, fact), labels=(5, 9, 7)[: n % 3 + 1]) for n, fact in enumerate(FACTS)]
    assert len({len(row.ids) for row in rows}) > 1
    names, above = (
        [architecture.weight(n) for n in layers],
        Above(model, architecture, [len(r.ids) for r in rows], layers[0]),
    )
    last, head = model.get_submodule(architecture.down_projections[-1]), model.get_output_embeddings()
    for turn, numbers in enumerate(([0, 1], [3, 2, 1, 0], [2], [2])):
        batch, found = _batch(model, [rows[n] for n in numbers], "prompt_last"), []
        assert len(numbers) == 1 or len(batch.labels) > len(numbers)
        for whole in (True, False):
            weights = {n: (model.get_parameter(n).detach() * (1 + turn / 3)).requires_grad_() for n in names}
            seen, handles = positions_of(last, head)
            if whole:
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
                logits = functional_call(model, weights, kwargs=inputs).logits[batch.label_rows, batch.label_columns]
            else:
                logits = above.label_logits(batch, numbers, weights)
            for handle in handles:
                handle.remove()
            assert len(logits) == len(batch.labels)
            found.append([logits, *torch.autograd.grad(logits.log_softmax(-1)[:, 3].sum(), list(weights.values()))])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        in_mlp = len(numbers) if turn and layers == (1,) else batch.input_ids.numel()  # first seen, and trained, whole
        tried = [2] if turn == 1 and layers == (1,) else []  # a column of the first batch, to see whether it can be
        assert seen == [[*tried, in_mlp], [len(numbers)]]
    assert not any("forward" in vars(module) for module in model.modules())


def test_where_batches_are_read_is_kept_of_some():
    world = World("gpt2")
    for number in range(KEPT_BATCHES + 3):
        batch = world.batch([number % 4])
        assert world.above._read(batch) is world.above._read(batch)
    assert len(world.above._reads) == KEPT_BATCHES


def test_a_weight_that_has_two_names_is_given_under_both():
    model = tiny_llama(torch.float64).requires_grad_(False)
    architecture, row = Architecture.discover(model), target_row(tiny_tokenizer(), FACTS[0])
    own, twin = (model.get_submodule(architecture.down_projections[layer]) for layer in (1, 2))
    twin.weight = own.weight
    above, batch = Above(model, architecture, [len(row.ids)], 1), padded(model, [row])
    for scale in (1.0, 0.5):
        weights = {architecture.weight(1): own.weight * scale}
        wanted = functional_call(model, weights, kwargs={"input_ids": batch.input_ids}).logits
        found = above.label_logits(batch, [0], weights)
        torch.testing.assert_close(found, wanted[batch.label_rows, batch.label_columns], rtol=1e-12, atol=1e-12)


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


# ------------------------------------------------------------------------------------ where target optimisation saves


def test_rows_are_grouped_by_length_where_that_saves_more_than_a_pass_costs():
    assert in_groups([9, 9, 9, 9], 0) == [[0, 1, 2, 3]]
    assert in_groups([99, 0, 99, 0], 0) == [[1, 3], [0, 2]]
    assert in_groups([24, 0, 24], 0) == [[0, 1, 2]], "a pass of its own costs as much"
    assert in_groups([25, 0, 25], 0) == [[1], [0, 2]]
    assert in_groups([25, 0, 25], 0, "cuda") == [[0, 1, 2]]
    assert in_groups([5], 2) == [[0]]
    some = [30, 170, 80, 30, 120, 170, 30]
    groups = in_groups(some, 3)
    assert sorted(row for group in groups for row in group) == list(range(len(some)))

    def cost(parts):
        return sum(24 + len(part) * (max(part) - 2) for part in parts)

    length, ordered = len(some), sorted(some)
    cuts = [cut for count in range(length) for cut in itertools.combinations(range(1, length), count)]
    ways = [[ordered[a:b] for a, b in itertools.pairwise((0, *cut, length))] for cut in cuts]
    assert cost([[some[row] for row in group] for group in groups]) == min(map(cost, ways))


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_the_head_runs_only_where_it_is_read(kind):
    model = MODELS[kind](torch.float64)
    ids = torch.arange(12).view(2, 6) + 1
    whole = model(input_ids=ids).logits
    rows, columns = torch.tensor([1, 0, 1]), torch.tensor([5, 2, 0])
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, args, output: seen.append(output.shape))
    with reading(model, rows, columns) as readings:
        found = readings.of(model(input_ids=ids).logits)
    handle.remove()
    torch.testing.assert_close(found, whole[rows, columns], rtol=1e-12, atol=1e-12)
    assert seen == [(1, 3, model.config.vocab_size)]
    assert torch.equal(model(input_ids=ids).logits, whole), "afterwards everything is computed again"


@pytest.mark.parametrize("told", [lambda: None, "get_input_embeddings"], ids=["none", "the one that takes tokens in"])
@torch.no_grad()
def test_a_model_without_a_module_for_its_head_is_read_all_the_same(monkeypatch, told):
    model, ids = tiny_model(torch.float64), torch.arange(6)[None] + 1
    whole = model(input_ids=ids).logits
    monkeypatch.setattr(model, "get_output_embeddings", told if callable(told) else getattr(model, told))
    with reading(model, torch.tensor([0]), torch.tensor([3])) as readings:
        assert torch.equal(readings.of(model(input_ids=ids).logits), whole[0, 3][None])


def test_what_a_model_does_with_its_heads_output_stays():
    """Gemma-2 caps its logits softly: read in part they are capped as read in whole."""
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = Gemma2ForCausalLM(config).double().eval(), torch.arange(6)[None] + 1
    whole = model(input_ids=ids).logits
    assert whole.abs().max() <= 0.5
    with reading(model, torch.tensor([0, 0]), torch.tensor([1, 4])) as readings:
        torch.testing.assert_close(readings.of(model(input_ids=ids).logits), whole[0, [1, 4]])
