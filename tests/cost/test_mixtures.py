"""What mixtures of experts cost: passes as they are counted, experts that are read and those that are not, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GptOssConfig, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig

from benchmarks.counting import Operations
from benchmarks.memory import LiveBytes
from lm_eval_edit.cost import estimate
from lm_eval_edit.cost.editing import FactLength, operation, second_moments
from lm_eval_edit.cost.memory import editing_memory
from lm_eval_edit.cost.work import DEVICES, Pass, Shape, Work
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.mixture import eager_experts
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.conftest import ROOT
from tests.support.mixtures import EXPERTS, INNER, MIXTURES, PICKED, SHARED, mixture_model

# The configurations on the hub, by hand: nothing is downloaded.
QWEN3_30B = Qwen3MoeConfig(
    vocab_size=151936, hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
    head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
)  # fmt: skip
GPT_OSS_20B = GptOssConfig(
    vocab_size=201088, hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_attention_heads=64,
    num_key_value_heads=8, head_dim=64, num_local_experts=32, num_experts_per_tok=4,
)  # fmt: skip
LARGE = {"Qwen3-30B-A3B": QWEN3_30B, "gpt-oss-20b": GPT_OSS_20B}
MEMIT = {"layers": (3, 4, 5, 6, 7)}


@pytest.mark.parametrize("name", [name for name in MIXTURES if name != "qwen3_next"])  # a recurrence beside attention
def test_a_whole_pass_has_the_operations_that_are_counted(name):
    model = mixture_model(name, torch.float32)
    model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    shape = Shape.of(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert (shape.experts, shape.picked, shape.routed) == (EXPERTS, PICKED, name not in SHARED)
    with torch.no_grad(), Operations() as counted:
        model(torch.randint(1, 60, (3, 20), generator=torch.Generator().manual_seed(0)))
    assert shape.blocks(60, 3 * 20**2) + 60 * shape.head == pytest.approx(counted.total, rel=0.05)


def test_the_width_is_that_of_the_experts_whatever_is_dense_beside_them():
    config = mixture_model("qwen3_moe", mlp_only_layers=[0], intermediate_size=96).config
    shape = Shape.of(config)
    assert (shape.inner, shape.routed) == (INNER, True), "not the 96 of the dense block"
    moments = second_moments(shape, "memit", {"layers": (1,)}, 1000)
    assert moments.single == 2 * INNER**2 * PICKED * 1000


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_routed_experts_beside_a_shared_one_are_counted_where_they_are_edited(name):
    config = mixture_model(name).config
    shared, routed = Shape.of(config), Shape.of(config, routed=True)
    assert not shared.routed and shared.inner > INNER
    assert (routed.inner, routed.routed) == (INNER, True)
    assert replace(routed, inner=shared.inner, routed=False) == shared
    assert editing_memory(routed, "memit", {"layers": (1,)}, 1).factors == 8 * EXPERTS * INNER**2


def test_few_tokens_read_few_experts():
    shape = Shape.of(SMALL)
    assert shape.hit(1) == PICKED and shape.read(1) == shape.block_weights
    assert PICKED < shape.hit(2) < shape.hit(50) <= EXPERTS
    whole = shape.block_weights + (EXPERTS - PICKED) * shape.expert_weights
    assert shape.read(1000) == pytest.approx(whole)
    assert shape.expert_weights == 3 * shape.hidden * INNER
    dense = Shape(10, 2, 4, 8, 10, 4, 100)
    assert dense.hit(1000) == dense.edited(7) == 1 and dense.read(1000) == 100
    one, many = (Work((Pass(1, 2 * shape.block_weights * tokens, 1),)) for tokens in (1, 1000))
    slow = DEVICES["h100"]
    assert many.seconds(shape, slow, 2, experts_apart=True) > one.seconds(shape, slow, 2, experts_apart=True)
    assert one.seconds(shape, slow, 2, experts_apart=True) > one.seconds(shape, slow, 2)


SMALL = mixture_model("qwen3_moe", torch.float32).config


def test_the_parts_of_an_edit_by_hand():
    shape = Shape.of(QWEN3_30B)
    moments = second_moments(shape, "memit", MEMIT, 10**6)
    assert moments.single == 2 * 768**2 * 8 * 5 * 10**6, "a token counts for each of the eight experts that it picks"
    work = operation(shape, "memit", MEMIT, FactLength(10, 2, 3), 100)
    hit = 128 * (1 - (1 - 8 / 128) ** 100)
    assert work.double == pytest.approx(5 * (hit * (2 * 768**2 * 100 + 2 * 768 * 100**2) + 100**3 / 3))
    tuned = operation(shape, "ft", {"layers": (3,), "num_steps": 1}, FactLength(10, 2, 3), 1)
    assert tuned.single == 2 * 2048 * 768 * 12 * 8


@pytest.mark.parametrize(
    ("name", "billions", "active", "experts"), [("Qwen3-30B-A3B", 30.5, 3.0, 128), ("gpt-oss-20b", 20.9, 3.0, 32)]
)
def test_the_large_ones_are_known_without_their_weights(name, billions, active, experts):
    shape = Shape.of(LARGE[name])
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005) and shape.experts == experts and shape.routed
    used = shape.layers * shape.block_weights / 1e9
    assert used == pytest.approx(active, rel=0.15), "the head and the embeddings are apart"
    cost = estimate(shape, tasks={"rte": None}, evaluations=1, editor="memit", options=MEMIT, operations=[100])
    assert 0 < cost.parts["editing"] < 3600 and cost.parts["evaluating"] < 3600


def test_memory_is_what_a_run_allocates():
    """The tensors themselves, of a run on a tiny mixture, against the count."""
    from lm_eval_edit import edit_model
    from tests.support.editors import DOWN
    from tests.support.tiny import FACTS, TEMPLATES, tiny_tokenizer

    model = mixture_model("qwen3_moe", torch.bfloat16)
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS[:1], "tests.support.editors:Experts", context_templates=TEMPLATES, progress=False
    )
    shape = Shape.of(model.config)
    counted = editing_memory(shape, "memit", {"layers": (1,)}, 1)
    pieces = ledger.weights._touched[DOWN].pieces.values()
    held = sum(p.original.nbytes + p.master.nbytes for p in pieces)
    assert counted.originals == held == 2 * shape.hidden * INNER * (2 + 4), "two experts, as one token picks"
    delta = ledger.operations[0].deltas[DOWN]
    assert counted.update == delta.left.nbytes + delta.right.nbytes
    moments = SecondMoments({DOWN: torch.eye(INNER).repeat(EXPERTS, 1, 1)})
    factor = moments.cholesky(DOWN)
    assert counted.factors == sum(block.nbytes for block in factor.blocks) and counted.moments == moments[DOWN].nbytes
    assert counted.weights == 2 * shape.parameters


def test_a_mixture_takes_as_many_devices_as_its_factors_need():
    shape = Shape.of(GPT_OSS_20B)
    common = {"tasks": {}, "evaluations": 0, "editor": "memit", "operations": [100], "device": DEVICES["h100"]}
    assert estimate(shape, options={"layers": (5,)}, **common).gpus == 1
    assert estimate(shape, options={"layers": tuple(range(24))}, **common).gpus == 2


def test_factors_come_beside_the_room_for_activations():
    shape = Shape.of(GPT_OSS_20B)
    held = editing_memory(shape, "memit", {"layers": (3, 4, 5)}, 100)
    card = replace(DEVICES["h100"], memory=1.05 * held.on_device)
    assert 1.2 * held.weights < card.memory < 1.2 * held.weights + held.factors
    common = {"tasks": {}, "evaluations": 0, "options": {"layers": (3, 4, 5)}, "device": card}
    assert estimate(shape, **common).gpus == 1, "the unedited model has its room"
    assert estimate(shape, editor="memit", operations=[100], **common).gpus == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("experts", [None, (0,), tuple(range(EXPERTS))])
def test_the_memory_of_fine_tuning_is_what_a_run_holds(experts, dtype):
    """Tensors alive while it trains wide matrices, beside which the activations are small; no experts: a dense MLP."""
    from lm_eval_edit.editors.ft import Ft, FtOptions
    from tests.support.tiny import FACTS, tiny_tokenizer

    if experts is None:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32, intermediate_size=8192, num_hidden_layers=3, num_attention_heads=4, vocab_size=64
        )  # fmt: skip
        model = LlamaForCausalLM(config).to(dtype).eval()
    else:
        model = mixture_model("qwen3_moe", dtype, moe_intermediate_size=2048)
    options = FtOptions(layers=(1,), num_steps=3, lr=1e-5, experts=experts)
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), [], SecondMoments())
    with eager_experts(model), LiveBytes() as held:
        Ft(options).compute(context, FACTS[:1])
    counted = editing_memory(Shape.of(model.config), "ft", vars(options), 1, dtype.itemsize)
    assert counted.training == pytest.approx(held.peak, rel=0.2)
    assert counted.on_device == counted.weights + counted.training + counted.originals


#: Of docs/mixtures.md: editor, its layers, facts of one operation.
SHOWN = (("memit", "3-7", 100), ("memit", "3-7", 1000), ("memit", "5", 100), ("ft", "5", 1), ("rome", "5", 1))


def table_rows() -> list[str]:
    """The memory table of docs/mixtures.md."""
    rows = []
    for name, config in LARGE.items():
        for editor, layers, facts in SHOWN:
            first, _, last = layers.partition("-")
            options = {"layers": tuple(range(int(first), int(last or first) + 1))}
            m = editing_memory(Shape.of(config), editor, options, facts)
            sizes = (m.weights, m.factors, m.keys, m.training, m.originals, m.on_device, m.moments, m.update)
            what = f"`{editor}`, layer{'s' * bool(last)} {layers}, {facts:,} fact{'s' * (facts > 1)}"
            rows.append(f"| {name} | {what} | " + " | ".join(f"{size / 1e9:.1f}" for size in sizes) + " |")
    return rows


def test_the_documents_table_is_the_cost_models():
    text = (ROOT / "docs" / "mixtures.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith(("| Qwen3", "| gpt-oss"))] == table_rows()
