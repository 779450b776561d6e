"""What rows share is run once, and what nobody reads is not run: everything is as if all of it had been."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from lm_eval_edit.editors._shared import left, subject_passes
from lm_eval_edit.editors._shared.forward import PartialForward
from lm_eval_edit.editors._shared.keys import SubjectStatesInTurn, subject_states
from lm_eval_edit.editors._shared.last_mlp import LastMlp
from lm_eval_edit.editors._shared.rows import Row, align, essence_row, fact_rows
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import (
    FACTS,
    NESTED_TEMPLATES,
    TEMPLATES,
    grid,
    tiny_llama,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
)

CPU = torch.device("cpu")
ROME = {"layers": (1,), "v_num_grad_steps": 6, "v_lr": 0.3}
MEMIT = {"layers": (0, 1), "v_num_grad_steps": 6, "v_lr": 0.3, "mom2_update_weight": 3.0}


def tiny_gemma(dtype: torch.dtype) -> Gemma2ForCausalLM:
    """Sliding windows of six tokens in every other block, soft caps, two query heads to a key-value head."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=48, initializer_range=0.3, sliding_window=6,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).to(dtype).eval()


MODELS = {"gpt2": tiny_model, "llama": tiny_llama, "gemma2": tiny_gemma}
ROUNDS = {"gemma2": 1e-5}  # float32 inside, whatever the model's dtype
every_model = pytest.mark.parametrize("kind", MODELS)
every_start = pytest.mark.parametrize("bos", [False, True], ids=["bare", "bos"])


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(left, "_known", type(left._known)())


@pytest.fixture
def whole(monkeypatch):
    """A context in which every row is run whole, as it was before there was `left` and `last_mlp`."""

    @contextlib.contextmanager
    def runs():
        with monkeypatch.context() as patched:
            for module in (left, subject_passes):
                patched.setattr(module, "keeps_all", lambda model, n_layers: False)
            patched.setattr(LastMlp, "only_at", lambda self, *where: contextlib.nullcontext())
            yield

    return runs


def rows_of(tokenizer, facts):
    return [row for f in facts for row in (*fact_rows(tokenizer, f, TEMPLATES), essence_row(tokenizer, f))]


@pytest.fixture
def counted(monkeypatch):
    """Rows of every run of beginnings."""
    seen = []
    own = left.run
    monkeypatch.setattr(left, "run", lambda model, part: seen.append(len(part.beginnings)) or own(model, part))
    return seen


# ----------------------------------------------------------------------------------------- beginnings that rows share


def test_beginnings_are_found_and_spread():
    rows = align([Row([5, 6, 7, 1, 2], 4), Row([5, 6, 7, 3], 3), Row([4], 0), Row([5, 6, 9, 1, 2, 8], 4)], CPU)
    part = left.Left.of(rows, 3)  # 5 6 7 | 5 6 of the second, which stands one further right | nothing | 5 6 9
    assert part.beginnings.tolist() == [[5, 6, 7], [5, 6, 9]]
    assert part.lengths.tolist() == [3, 2, 0, 3] and part.source.tolist()[::3] == [0, 1]
    states = torch.tensor([[50, 60, 70], [50, 60, 90]])[:, None, :, None].float()
    spread = part.spread(states)[:, 0, :, 0]
    assert (
        spread[0].tolist() == [50, 60, 70] and spread[1, 1:].tolist() == [50, 60] and spread[3].tolist() == [50, 60, 90]
    )


def test_a_cut_is_where_most_positions_are_saved():
    template, many = list(range(10, 20)), [[30 + i, 31 + i, 32 + i] for i in range(8)]
    shared = align([Row([*template, *own], 12) for own in many], CPU)
    assert left.shared_cut(shared) == 10
    alone = align([Row([60 + i, *own], 3) for i, own in enumerate(many)], CPU)
    assert left.shared_cut(alone) == 0
    assert left.shared_cut(align([Row([*template, 1], 10)], CPU)) == 0


def plain_cut(rows):
    """The cut of the least cost, each written out: rows right of it, and left of it their longest beginnings."""
    count, width = rows.input_ids.shape
    starts = (rows.attention_mask == 0).sum(dim=1).tolist()
    whole = [row[start : rows.column + 1] for row, start in zip(rows.input_ids.tolist(), starts, strict=True)]
    different = {tuple(part[:length]) for part in whole for length in range(1, len(part) + 1)}
    if sum(map(len, whole)) - len(different) < (1 - left.SAVED) * count * width:
        return 0
    costs = {0: left.SAVED * count * width}
    for cut in range(1, rows.column + 1):
        beginnings = left.Left.of(rows, cut).beginnings
        costs[cut] = count * (width - cut) + beginnings.numel()
    return min(costs, key=lambda cut: costs[cut])  # the first of the least


def test_the_cut_is_that_of_the_plain_definition():
    drawn, found = random.Random(0), set()
    for _ in range(400):
        templates = [drawn.choices(range(1, 4), k=drawn.randint(0, 9)) for _ in range(drawn.randint(1, 4))]
        rows = []
        for _ in range(drawn.randint(1, 12)):
            ids = drawn.choice(templates) + drawn.choices(range(1, 4), k=drawn.randint(1, 3))
            rows.append(Row(ids + drawn.choices(range(1, 4), k=drawn.randint(0, 2)), len(ids) - 1))
        aligned = align(rows, CPU)
        found.add(left.shared_cut(aligned))
        assert left.shared_cut(aligned) == plain_cut(aligned), rows
    assert len(found) > 5 and 0 in found


def test_a_cut_is_found_at_once_in_many_long_rows():
    templates = [[number, *range(300)] for number in range(63)]
    rows = align([Row([*templates[i % 63], 400 + i], 301) for i in range(504)], CPU)
    started = time.process_time()
    assert left.shared_cut(rows) == 301
    assert time.process_time() - started < 1, "not each cut anew: that is cubic work before a pass"


@every_model
@every_start
@pytest.mark.parametrize("facts", [FACTS, FACTS[2:3]], ids=len)
def test_a_partial_forward_is_what_it_is_over_whole_rows(kind, bos, facts, whole, counted):
    model, tokenizer = MODELS[kind](torch.float64), tiny_tokenizer(bos)
    architecture = Architecture.discover(model)
    rows = align(rows_of(tokenizer, facts), CPU)
    columns = torch.arange(rows.column, rows.input_ids.shape[1])
    real = grid_mask(rows, columns)
    for start in range(3):
        found = PartialForward(model, architecture, rows, start, capture=(1,))
        with whole():
            wanted = PartialForward(model, architecture, rows, start, capture=(1,))
        close = dict.fromkeys(("rtol", "atol"), ROUNDS.get(kind, 1e-10))
        for of in ("keys", "mlp_outputs", "block_outputs"):
            torch.testing.assert_close(getattr(found.capture, of)[1], getattr(wanted.capture, of)[1], **close)
        torch.testing.assert_close(grid(found, columns)[real], grid(wanted, columns)[real], **close)
    assert len(counted) in (1, 3), "beginnings were run, and known again where no others of this operation share them"


def grid_mask(rows, columns):
    """(R, C) where a row has a token of its own: behind its end it sees what it likes."""
    last = torch.full((len(rows),), rows.column).scatter_reduce(0, rows.label_rows, rows.label_columns, "amax")
    return columns[None] <= last[:, None]


@every_model
@every_start
def test_rome_and_memit_are_what_they_are_over_whole_rows(kind, bos, whole):
    model, tokenizer = MODELS[kind](torch.float64), tiny_tokenizer(bos)
    moments, architecture = SecondMoments(tiny_second_moments(model)), Architecture.discover(model)
    rome = EditContext(model, tokenizer, architecture, TEMPLATES, moments)
    memit = EditContext(model, tokenizer, architecture, NESTED_TEMPLATES, moments)
    jobs = [(Rome(RomeOptions(**ROME)), rome, FACTS[:1]), (Rome(RomeOptions(**ROME)), rome, FACTS[3:]),
            (Memit(MemitOptions(**MEMIT)), memit, FACTS), (Memit(MemitOptions(**MEMIT)), memit, FACTS[:1])]  # fmt: skip
    for editor, context, facts in jobs:
        found = editor.compute(context, facts).deltas
        with whole():
            wanted = editor.compute(context, facts).deltas
        for name, delta in wanted.items():
            error = (found[name].dense(torch.float64) - delta.dense(torch.float64)).norm()
            assert error <= ROUNDS.get(kind, 1e-8) * delta.dense(torch.float64).norm(), (editor.name, name)


# -------------------------------------------------------------------------------------------- kept between operations


def edited_by(rome, fact):
    delta = Rome(RomeOptions(**ROME)).compute(rome, [fact]).deltas
    return {name: each.dense(torch.float64) for name, each in delta.items()}


@pytest.fixture
def world():
    model = tiny_llama(torch.float64)
    return model, EditContext(model, tiny_tokenizer(), Architecture.discover(model), TEMPLATES, SecondMoments())


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_on_the_same_weights_beginnings_are_run_once_and_the_bits_are_the_same(world, counted):
    model, rome = world
    first = [edited_by(rome, fact) for fact in FACTS[:3]]
    assert len(counted) == 1
    left._known.clear()
    assert all(same(edited_by(rome, fact), one) for fact, one in zip(FACTS, first, strict=False)), (
        "a process of its own"
    )
    known = left._known[model]
    assert known.states is not None and known.states[0][0].shape[0] == len(TEMPLATES) - 1


@pytest.mark.parametrize("name", ["layers.0.mlp.down_proj", "layers.2.self_attn.k_proj", "embed_tokens"])
@pytest.mark.parametrize("unseen", [False, True], ids=["in place", "through .data"])
def test_other_weights_are_seen_whoever_writes_them_and_how(world, counted, name, unseen):
    model, rome = world
    edited_by(rome, FACTS[0])
    weight = model.model.get_submodule(name).weight
    with torch.no_grad():
        (weight.data if unseen else weight).mul_(1.01)
    found = edited_by(rome, FACTS[0])
    assert len(counted) == 2
    left._known.clear()
    assert same(found, edited_by(rome, FACTS[0]))


def test_in_a_run_that_changes_its_matrix_nothing_is_kept_and_when_it_is_put_back_it_is_again(world, counted):
    model, rome = world
    weight = model.get_parameter(rome.architecture.weight(1))
    original = weight.detach().clone()
    for fact in FACTS[:3]:
        delta = edited_by(rome, fact)
        with torch.no_grad():
            weight.data += delta[rome.architecture.weight(1)]
    assert len(counted) == 3 and left._known[model].states is None
    weight.data.copy_(original)
    for fact in FACTS[:3]:
        edited_by(rome, fact)
    assert len(counted) == 5 and left._known[model].states is not None, "seen to stay, then kept, then known"


# ----------------------------------------------------------------------- passes while layers are edited from the lowest


@every_model
@every_start
@pytest.mark.parametrize("keep", [True, False])
@torch.no_grad()
def test_states_in_turn_are_those_of_passes_from_the_lowest_block(kind, bos, keep, whole):
    model, tokenizer = MODELS[kind](torch.float64), tiny_tokenizer(bos)
    architecture = Architecture.discover(model)
    context = EditContext(model, tokenizer, architecture, NESTED_TEMPLATES, SecondMoments())
    turns = SubjectStatesInTurn(context, FACTS, 2, again=keep)
    close = dict.fromkeys(("rtol", "atol"), ROUNDS.get(kind, 1e-10))
    for layers in ([0], [1], [2], [], [2], [0, 1], []):  # the last of them lower than was announced
        found = turns.states(layers)
        with whole():
            wanted = subject_states(context, FACTS, layers, 2)
        torch.testing.assert_close(found.outputs, wanted.outputs, **close)
        assert set(found.keys) == set(layers)
        for layer in layers:
            torch.testing.assert_close(found.keys[layer], wanted.keys[layer], **close)
        for layer in layers[:1]:
            model.get_parameter(architecture.weight(layer)).data.mul_(1.5)


@torch.no_grad()
def test_a_pass_begins_at_the_layer_that_was_edited():
    model = tiny_model(torch.float64)
    architecture = Architecture.discover(model)
    context = EditContext(model, tiny_tokenizer(), architecture, NESTED_TEMPLATES, SecondMoments())
    tokens = dict.fromkeys(range(3), 0)

    def count(layer):
        return lambda module, args, output: tokens.update({layer: tokens[layer] + output[0].shape[:-1].numel()})

    for layer in range(3):
        model.transformer.h[layer].attn.register_forward_hook(count(layer))
    turns = SubjectStatesInTurn(context, FACTS, 2)
    turns.states([1])
    first = dict(tokens)
    assert len(set(first.values())) == 1
    turns.states([2])
    turns.states([])
    assert [tokens[layer] // first[layer] for layer in range(3)] == [1, 2, 3]
    rows = [row for fact in FACTS for row in fact_rows(context.tokenizer, fact, TEMPLATES)]
    assert first[0] < len(rows) * max(row.subject_last + 1 for row in rows), "less than all rows whole"


# ----------------------------------------------------------------------------------------------------- the last block


@every_model
def test_the_last_mlp_runs_where_it_is_read_and_gradients_are_the_same(kind, whole):
    model, tokenizer = MODELS[kind](torch.float64), tiny_tokenizer()
    architecture = Architecture.discover(model)
    rows = align(rows_of(tokenizer, FACTS), CPU)
    seen = []
    projection = model.get_submodule(architecture.down_projections[-1])
    at_rows = torch.cat([rows.label_rows, rows.label_rows[:2]])  # two places are read twice
    at_columns = torch.cat([rows.label_columns, rows.label_columns[:2]])

    def read():
        partial = PartialForward(model, architecture, rows, 1)
        entering = partial.entering.clone().requires_grad_()
        partial.logits(at_rows, at_columns)  # the first time the module is tried
        handle = projection.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
        logits = partial.logits(at_rows, at_columns, entering)
        handle.remove()
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[:, 3].sum(), entering)
        return logits.detach(), gradient

    found = read()
    with whole():
        wanted = read()
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert seen == [
        len(set(zip(at_rows.tolist(), at_columns.tolist(), strict=True))),
        rows.input_ids[:, rows.column :].numel(),
    ]
    assert "forward" not in vars(model.get_submodule(architecture.down_projections[-1].rpartition(".")[0]))


@pytest.mark.parametrize("start", [1, 2])
def test_of_the_last_mlp_no_more_is_kept_than_its_trial_needs(start):
    model = tiny_llama(torch.float64)
    rows = align(rows_of(tiny_tokenizer(), FACTS), CPU)
    seen = PartialForward(model, Architecture.discover(model), rows, start)._last_mlp._seen
    assert len(seen) == (1 if start == 1 else 0), "where the last block is edited, its MLP runs whole"
    for kept in seen[0] if seen else ():
        assert kept.untyped_storage().nbytes() == len(rows) * model.config.hidden_size * kept.element_size()


def test_an_mlp_that_looks_at_other_positions_runs_whole(whole):
    model = tiny_llama(torch.float64)
    architecture, mlp = Architecture.discover(model), model.model.layers[-1].mlp
    own = mlp.forward
    mlp.forward = lambda hidden: own(hidden + torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1))
    with whole():  # what such a module gives depends on where a pass begins, too
        rows = align(rows_of(tiny_tokenizer(), FACTS), CPU)
        wanted = PartialForward(model, architecture, rows, 1).logits(rows.label_rows, rows.label_columns)
        forward = PartialForward(model, architecture, rows, 1)
    torch.testing.assert_close(forward.logits(rows.label_rows, rows.label_columns), wanted)
    assert forward._last_mlp._by_itself is False


@every_model
def test_what_is_seen_of_the_last_block_is_of_the_pass_and_not_of_the_trial_of_its_mlp(kind):
    """The trial hands the MLP one column; hooks of an edit in the last block used to take it for the pass."""
    model, tokenizer = MODELS[kind](torch.float64), tiny_tokenizer()
    architecture = Architecture.discover(model)
    last = architecture.n_layers - 1
    rows = align(fact_rows(tokenizer, FACTS[0], ("{}",)), CPU)
    seen = {}
    projection = model.get_submodule(architecture.down_projections[last])
    with torch.no_grad():
        handle = projection.register_forward_hook(lambda m, args, out: seen.update(keys=args[0], outputs=out))
        model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, position_ids=rows.position_ids)
        handle.remove()
    capture = PartialForward(model, architecture, rows, last, (last,)).capture
    for name, wanted in seen.items():
        found = (capture.keys if name == "keys" else capture.mlp_outputs)[last]
        wanted = wanted.reshape(len(rows), -1, wanted.shape[-1])[:, rows.column]
        torch.testing.assert_close(found, wanted, rtol=ROUNDS.get(kind, 1e-10), atol=ROUNDS.get(kind, 1e-10))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_last_block_may_be_the_edited_one(kind, whole):
    model = MODELS[kind](torch.float64)
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), TEMPLATES, SecondMoments())
    editor = Rome(RomeOptions(**ROME | {"layers": (2,)}))
    for facts in (FACTS[:1], FACTS[:1]):
        found = editor.compute(context, facts).deltas
        with whole():
            wanted = editor.compute(context, facts).deltas
        for name, delta in wanted.items():
            torch.testing.assert_close(
                found[name].dense(torch.float64), delta.dense(torch.float64), rtol=1e-8, atol=1e-9
            )
