"""The blocks below an edit, run once: a pass begun above them has the bits of a whole one, or is not begun there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from lm_eval_edit import UserError
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.lower_blocks import STALE, LowerBlocks
from lm_eval_edit.models.tried_above import why_not
from tests.support.decoders import CASES, WINDOW, build
from tests.support.hybrids import HYBRIDS, make
from tests.support.mixtures import MIXTURES, mixture_model
from tests.support.tiny import tiny_model

PROMPTS = torch.tensor([[3, 9, 27, 17, 51, 25, 11, 33, 35], [5, 15, 45, 7, 21, 63, 61, 55, 37]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
KINDS = [*CASES, *MIXTURES]


def kind(name: str):
    return mixture_model(name, torch.float32) if name in MIXTURES else build(*CASES[name][:2])


def lower(model, levels=(1, 2), limit=float("inf"), **how) -> LowerBlocks:
    return LowerBlocks(model, Architecture.discover(model), levels, limit, **how)


@torch.no_grad()
def read(model, ids=PROMPTS):
    return model(ids).logits


def generated(model, ids=PROMPTS):
    found = model.generate(
        input_ids=ids, attention_mask=MASK, min_new_tokens=4, max_new_tokens=4, do_sample=False, use_cache=True,
        pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return torch.stack([*found.logits])


@torch.no_grad()
def edit(model, level: int, by: float = 0.05) -> None:
    """Change every parameter of block `level` and of those above it."""
    for path in Architecture.discover(model).blocks[level:]:
        for number, parameter in enumerate(model.get_submodule(path).parameters()):
            torch.manual_seed(number)
            parameter.add_(by * torch.randn_like(parameter))


@contextlib.contextmanager
def passes(model, layer: int) -> Iterator[list]:
    """Within, how many tokens each pass has for the first module of a block that has parameters and no modules."""
    block = model.get_submodule(Architecture.discover(model).blocks[layer])
    seen: list[int] = []
    leaf = next(module for module in block.modules() if not [*module.children()] and [*module.parameters()])
    handle = leaf.register_forward_hook(lambda m, args, output: seen.append(args[0].shape[-2]))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("run", [read, generated])
def test_an_edited_model_begun_above_has_the_bits_of_a_whole_pass(name, run):
    if name == "qwen3_next" and run is generated:
        pytest.skip("a recurrent state: below")
    model = kind(name)
    shared = lower(model)
    unedited = run(model)
    with shared.used(2):
        assert torch.equal(run(model), unedited)
    for hits, level in ((1, 2), (2, 1)):
        edit(model, level)
        whole = run(model)
        assert not torch.equal(whole, unedited), "the edit has an effect"
        with passes(model, 0) as below, shared.used(level):
            begun = run(model)
        assert torch.equal(begun, whole)
        assert (shared.counts.hits, shared.counts.misses, shared.counts.others) == (hits, 1, 0)
        prompts = [tokens for tokens in below if tokens > 1]
        assert not prompts, "the lowest block has not read the prompts again"


def test_what_is_known_up_to_a_lower_block_is_run_on_from_there():
    model = tiny_model()
    shared, whole = lower(model), generated(model)
    with shared.used(1):
        generated(model)
    with passes(model, 0) as lowest, passes(model, 1) as next_one, shared.used(2):
        assert torch.equal(generated(model), whole)
    assert not [n for n in lowest if n > 1] and [n for n in next_one if n > 1] == [9]
    with passes(model, 1) as next_one, shared.used(2):
        assert torch.equal(generated(model), whole)
    assert not [n for n in next_one if n > 1] and (shared.counts.hits, shared.counts.misses) == (2, 1)


def test_other_prompts_padding_or_precision_are_not_mistaken_for_known_ones():
    model = tiny_model()
    shared = lower(model)
    how = [
        {"input_ids": PROMPTS}, {"input_ids": (PROMPTS + 1) % 64}, {"input_ids": PROMPTS.T.contiguous().view(2, 9)},
        {"input_ids": PROMPTS[:1]}, {"input_ids": PROMPTS[:, :8]}, {"input_ids": PROMPTS, "attention_mask": MASK},
        {"input_ids": PROMPTS, "attention_mask": MASK.bool()},
        {"input_ids": PROMPTS, "position_ids": torch.arange(9).expand(2, 9) + 1},
    ]  # fmt: skip
    with torch.no_grad(), shared.used(2):
        first = [model(**each).logits for each in how]
        assert (shared.counts.hits, shared.counts.misses) == (0, len(how))
        again = [model(**each).logits for each in how]
    assert shared.counts.hits == len(how) and all(map(torch.equal, first, again))
    with torch.no_grad():
        assert all(torch.equal(model(**each).logits, logits) for each, logits in zip(how, first, strict=True))


def test_the_memory_is_bounded_and_what_found_no_room_is_run_whole():
    model = tiny_model()
    one = 2 * 9 * 32 * 4  # of two prompts of nine tokens
    shared = lower(model, [2], 3.5 * one)
    batches = [(PROMPTS + n) % 64 for n in range(8)]
    for use in range(3):  # in the same order again and again: what came first stays
        with shared.used(2):
            for ids in batches:
                assert torch.equal(read(model, ids), read_whole(model, ids))
                assert shared.counts.bytes <= shared.limit
        assert (shared.counts.hits, shared.counts.misses, shared.counts.full) == (3 * use, 3, 5 * (use + 1))
    assert shared.counts.bytes == shared.counts.most == 3 * one and shared.counts.dropped == 0


def read_whole(model, ids):
    """As `read`, of a model that shares nothing."""
    return read(tiny_model(), ids)


def test_what_nobody_asks_for_any_longer_gives_its_place_away():
    model = tiny_model()
    shared = lower(model, [2], 2.5 * 2 * 9 * 32 * 4)
    for use in range(STALE + 1):
        with shared.used(2):
            read(model)
            read(model, (PROMPTS + (1 if use < 1 else 2)) % 64)
    assert (shared.counts.dropped, shared.counts.misses, shared.counts.full) == (1, 3, STALE - 1)
    with shared.used(2):
        before = shared.counts.hits
        read(model)
        read(model, (PROMPTS + 2) % 64)
    assert shared.counts.hits == before + 2


def test_what_a_block_does_to_the_states_it_is_given_does_not_reach_those_that_are_kept(monkeypatch):
    model = tiny_model()
    block = model.get_submodule(Architecture.discover(model).blocks[2])
    forward = block.forward
    block.forward = lambda hidden_states, *args, **kwargs: forward(hidden_states.add_(1), *args, **kwargs)
    shared, whole = lower(model), read(model)
    with shared.used(2):
        assert all(torch.equal(read(model), whole) for _ in range(3))
    assert shared.counts.hits == 2


def test_on_other_lower_weights_passes_are_run_whole():
    model = tiny_model()
    shared = lower(model)
    with shared.used(2):
        read(model)
        edit(model, 1)  # one of the blocks below
        changed = read(model)
    assert (shared.counts.hits, shared.counts.others) == (0, 1)
    assert torch.equal(changed, read(model)) and not torch.equal(changed, read(tiny_model()))


def test_a_cache_that_nobody_asked_for_is_not_gone_on_with():
    model = tiny_model()
    shared = lower(model)

    @torch.no_grad()
    def both(**how):
        cache = model(PROMPTS, **how).past_key_values
        return model(PROMPTS[:, :1], past_key_values=cache).logits

    asked = both(use_cache=True)
    with shared.used(2):
        for _ in range(2):
            assert torch.equal(both(use_cache=True), asked)
        read(model)
        with pytest.raises(RuntimeError, match="began above the lowest blocks"):
            both()
    assert shared.counts.hits == 2 and torch.equal(both(), asked)


def test_passes_with_gradients_or_unknown_arguments_are_run_whole():
    model = tiny_model()
    shared = lower(model)
    with shared.used(2):
        read(model)
        assert model(PROMPTS).logits.requires_grad and shared.counts.hits == 0
        with torch.no_grad():
            model(PROMPTS, unknown_to_the_library={"of": PROMPTS})
    assert (shared.counts.hits, shared.counts.misses, shared.counts.others) == (0, 1, 1)


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    model, whole = tiny_model(), read(tiny_model())
    shared = lower(model)
    head = model.lm_head.register_forward_pre_hook(lambda m, args: 1 / 0)
    with shared.used(2), pytest.raises(ZeroDivisionError):
        read(model)
    head.remove()
    assert shared.counts.misses == 0, "nothing is kept of it"
    with shared.used(2):
        read(model)
        head = model.lm_head.register_forward_pre_hook(lambda m, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read(model)
        head.remove()
        assert torch.equal(read(model), whole) and shared.counts.hits == 2
    assert torch.equal(read(model), whole)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_an_interrupted_pass_leaves_the_model_as_it_was():
    model, whole = tiny_model(), read(tiny_model())
    shared = lower(model)

    def interrupt(module, args):
        raise KeyboardInterrupt

    with shared.used(2):
        read(model)
    with shared.used(2), pytest.raises(KeyboardInterrupt):
        model.lm_head.register_forward_pre_hook(interrupt)
        read(model)
    model.lm_head._forward_pre_hooks.clear()
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert torch.equal(read(model), whole)
    with shared.used(2):
        assert torch.equal(read(model), whole) and shared.counts.hits == 2


@pytest.mark.parametrize("levels", [[], [0], [3], [0, 1]])
def test_levels_without_blocks_below_or_above_are_refused(levels):
    with pytest.raises(ValueError, match="want blocks"):
        lower(tiny_model(), levels)


# --------------------------------------------------------------------------------------------------------- the trial


@pytest.mark.parametrize("name", KINDS)
def test_the_trial_passes_models_that_hand_on_hidden_states_and_keys(name):
    model = kind(name)
    recurrent = name == "qwen3_next"
    reading, generating = why_not(model, Architecture.discover(model), [1, 2])
    assert not reading and bool(generating) == recurrent


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_recurrent_state_is_not_made_up(name):
    model = make(name, torch.float32)
    try:
        parts = Architecture.discover(model)
    except UserError as error:
        pytest.skip(f"the installed transformers has it otherwise: {error}")
    reading, generating = why_not(model, parts, [1, 3])
    assert not reading and "computes something else" in generating
    shared, whole = lower(model, [3], caches=False), generated(model)
    with shared.used(3):
        read(model)
        assert torch.equal(generated(model), whole)
        read(model)
    assert (shared.counts.hits, shared.counts.misses, shared.counts.others) == (1, 1, 1)


def test_keys_that_layers_share_are_told():
    config = WINDOW | {
        "num_hidden_layers": 4, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip
    model = build("gemma4_text", config)
    assert all("begun at block 2 it" in why for why in why_not(model, Architecture.discover(model), [2]))


def test_values_that_go_past_the_blocks_are_told():
    model = tiny_model()
    blocks = [model.get_submodule(path) for path in Architecture.discover(model).blocks]
    forward = blocks[0].forward
    blocks[0].forward = lambda states, *args, **how: (
        vars(model).update(mean=states.mean()) or forward(states, *args, **how)
    )
    blocks[2].register_forward_pre_hook(lambda m, args: (args[0] + model.mean, *args[1:]))
    reading, _ = why_not(model, Architecture.discover(model), [2])
    assert "begun at block 2 it computes something else" in reading


def test_what_is_not_the_same_twice_is_told():
    model = tiny_model()
    torch.manual_seed(0)
    model.lm_head.register_forward_hook(lambda m, args, output: output + torch.rand(1))
    assert "computes something else" in why_not(model, Architecture.discover(model), [1])[0]
