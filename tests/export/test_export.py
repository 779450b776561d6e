"""Exports answer in the other engine like the edited model: exact where promised, refused where not."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from benchmarks.lifelong import tensor_bytes
from lm_eval_edit import ConfigurationError, demo, edit_model, load_facts
from lm_eval_edit.export import adapter as adapters
from lm_eval_edit.export import export
from lm_eval_edit.export.commands import vllm_rank
from lm_eval_edit.export.deltas import read_deltas
from lm_eval_edit.export.sums import DeltaSum
from lm_eval_edit.export.writing import check
from lm_eval_edit.facts.exported import exported_facts
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta, MaskedDelta, SparseDelta
from lm_eval_edit.weights.edited import model_fingerprint
from tests.support.export_world import base_of, load, logits, make_world, with_adapter
from tests.support.tiny import FACTS, tiny_tokenizer

pytestmark = pytest.mark.libraries

# Few steps: what is tested is the way into the other engine, not the edit.
ROME = {"v_num_grad_steps": 3, "v_lr": 0.5, "context_templates": ["{}", "It is said that. {}"]}
MEMIT = ROME | {"context_templates": [["{}"], ["It is said that. {}"]]}
EDITORS = {
    "rome": ROME | {"layers": [2]},
    "r_rome": ROME | {"layers": [2]},
    "memit": MEMIT | {"layers": [1, 2], "mom2_update_weight": 100},
    "emmet": MEMIT | {"layers": [2], "mom2_update_weight": 100},
    "alphaedit": MEMIT | {"layers": [1, 2], "nullspace_threshold": 0.02, "L2": 1},
    "memit_seq": MEMIT | {"layers": [1, 2], "mom2_update_weight": 100},
    "encore": MEMIT | {"layers": [1, 2], "mom2_update_weight": 100, "own_targets": True},
    "mend": {},
    "random": ROME | {"over": "rome", "layers": [2]},
    "kn": {"steps": 5},
}
OTHER_TEXTS = ("The weather is fine today and", "Nils Albrecht was born in the city of Berlin. He", "1 2 3")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("export"))


def reference_options(reference, name, editor):
    options = dict(EDITORS[editor])
    if editor == "mend":
        options = json.loads((reference / "deltas" / f"MEND_{name}.json").read_text())["hparams"]
        options |= {"archive": str(reference / "mend_archives" / f"mend_{name}.archive")}
    elif editor == "random":
        options["like"] = options.pop("over")
    return options


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("editor", EDITORS)
def test_checkpoint_and_adapter_answer_like_the_edited_model(reference, tmp_path, name, editor):
    folder = reference / "models" / name
    model, tokenizer, facts = (
        load(folder),
        AutoTokenizer.from_pretrained(folder),
        list(load_facts(str(reference / "facts.json"))),
    )
    texts = [fact.text for fact in facts[:3]] + list(OTHER_TEXTS)
    unedited = logits(model, tokenizer, texts)
    edit_model(
        model, tokenizer, facts[:3], editor, options=reference_options(reference, name, editor),
        second_moments=folder / "second_moments.safetensors", ledger=tmp_path / "ledger", progress=False,
    )  # fmt: skip
    wanted = logits(model, tokenizer, texts)
    assert (wanted - unedited).abs().max() > 1e-3, "the edits must show, or the comparisons below say nothing"

    record = export(tmp_path / "ledger", "peft", tmp_path / "peft", device="cpu")
    assert record["adapter"]["exact"]
    assert (logits(with_adapter(folder, tmp_path / "peft"), tokenizer, texts) - wanted).abs().max() <= 1e-5

    export(tmp_path / "ledger", "hf", tmp_path / "hf", device="cpu")
    assert torch.equal(logits(load(tmp_path / "hf"), AutoTokenizer.from_pretrained(tmp_path / "hf"), texts), wanted)
    assert model_fingerprint(load(tmp_path / "hf")) == model_fingerprint(model)


# ----------------------------------------------------------------------------------------- a small world without shared


def texts_of():
    return [fact.text for fact in FACTS]


def test_the_last_correction_of_prune_is_exported_for_the_prefix_asked_for(world, tmp_path):
    tokenizer = tiny_tokenizer()
    whole = logits(load(world / "prune-edited"), tokenizer, texts_of())
    export(world / "prune", "peft", tmp_path / "four", device="cpu")
    assert (logits(with_adapter(world / "model", tmp_path / "four"), tokenizer, texts_of()) - whole).abs().max() < 1e-4

    model = load(world / "model")
    options = json.loads((world / "prune" / "ledger.json").read_text())["identity"]["options"]
    ledger = edit_model(model, tokenizer, FACTS[:2], "prune", options=options, progress=False)
    pruned = logits(model, tokenizer, texts_of())
    ledger.weights.restore()
    for operation in ledger.operations:
        ledger.weights.apply(operation.deltas)
    assert (logits(model, tokenizer, texts_of()) - pruned).abs().max() > 1e-2, "the correction must do something"
    export(world / "prune", "hf", tmp_path / "two", n_edits=2, device="cpu")
    assert (logits(load(tmp_path / "two"), tokenizer, texts_of()) - pruned).abs().max() < 1e-5


@pytest.mark.parametrize("n_edits", [2, 4])
def test_a_prefix_is_the_run_of_that_length(world, tmp_path, n_edits):
    record = export(world / "memit", "peft", tmp_path / "out", n_edits=n_edits, device="cpu")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert record["edits"]["n_edits"] == n_edits and config["r"] == config["lora_alpha"] == n_edits
    assert config["target_modules"] == [f"transformer.h.{layer}.mlp.c_proj" for layer in (0, 1)]
    assert config["fan_in_fan_out"] is True and not config["rank_pattern"]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    a = tensors["base_model.model.transformer.h.0.mlp.c_proj.lora_A.weight"]
    b = tensors["base_model.model.transformer.h.0.mlp.c_proj.lora_B.weight"]
    assert a.shape == (n_edits, 96) and b.shape == (32, n_edits)
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-4), "balanced"


def test_matrices_of_lower_rank_are_padded_to_the_one_rank(world, tmp_path):
    model = load(world / "model")
    names = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    deltas = {
        name: LowRankDelta(torch.randn(96, r, generator=generator), torch.randn(r, 32, generator=generator))
        for name, r in zip(names, (1, 3), strict=True)
    }
    sums = {name: DeltaSum(delta.shape, torch.float32, torch.device("cpu")) for name, delta in deltas.items()}
    for name, delta in deltas.items():
        sums[name].add(delta)
        sums[name].add(delta)  # the same directions again: the rank does not grow
    made = adapters.make_adapter(model, sums)
    assert made.rank == 3 and dict(made.true_ranks) == dict(zip(names, (1, 3), strict=True)) and made.is_exact
    adapters.write_adapter(model, made, tmp_path, "base")
    assert model_fingerprint(model) == model_fingerprint(load(world / "model"))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.shape[0 if "lora_A" in key else 1] for key, t in tensors.items()} == {3}
    for name, delta in deltas.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        product = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        assert torch.allclose(product.T, 2 * delta.dense(), atol=1e-4)


def test_every_full_module_name_is_kept_however_many_there_are(world, tmp_path):
    """peft shortens lists of twenty and more to suffixes; engines that read full names must find them."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=22, n_head=1)).eval()
    sums = {}
    for layer in range(22):
        name = f"transformer.h.{layer}.mlp.c_proj.weight"
        sums[name] = DeltaSum((32, 8), torch.float32, torch.device("cpu"))
        sums[name].add(SparseDelta(torch.tensor([layer]), torch.ones(1, 8), torch.tensor([32, 8, 0])))
    adapters.write_adapter(model, adapters.make_adapter(model, sums), tmp_path, "base")
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert written == sorted(name.removesuffix(".weight") for name in sums)


# ------------------------------------------------------------------------------------------ what no adapter can express


@pytest.mark.parametrize("editor", ["ft-llama", "rect"])
def test_what_is_not_low_rank_is_refused_unless_a_rank_is_given(world, tmp_path, editor):
    with pytest.raises(ConfigurationError, match="not low rank, so that no adapter is exact"):
        export(world / editor, "peft", tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())
    record = export(world / editor, "peft", tmp_path / "out", rank=3, device="cpu")
    model, edited = load(base_of(world, editor)), load(world / f"{editor}-edited")
    for name, entry in record["adapter"]["parameters"].items():
        change = (edited.get_parameter(name) - model.get_parameter(name)).detach().double()
        s = torch.linalg.svdvals(change).square()
        assert entry["rank"] == 3 < entry["true_rank"]
        assert entry["energy_kept"] == pytest.approx((s[:3].sum() / s.sum()).item(), abs=1e-4)
        assert 0 < entry["energy_kept"] < 1
    assert record["adapter"]["logit_error"] > record["check"]["tolerance"]
    export(world / editor, "hf", tmp_path / "hf", device="cpu")  # exact without more ado
    assert model_fingerprint(load(tmp_path / "hf")) == model_fingerprint(edited)


def test_ft_changes_the_biases_of_gpt2_which_no_adapter_can(world, tmp_path):
    for rank in (None, 3):
        with pytest.raises(ConfigurationError, match=r"mlp\.c_proj\.bias is a bias, .*only\. Use to=hf"):
            export(world / "ft", "peft", tmp_path / "out", rank=rank, device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_given_rank_is_an_upper_bound(world, tmp_path):
    exact = export(world / "rome", "peft", tmp_path / "exact", rank=64, device="cpu")["adapter"]
    assert exact["rank"] == 4 and exact["exact"]
    less = export(world / "rome", "peft", tmp_path / "less", rank=3, device="cpu")["adapter"]
    assert less["rank"] == 3 and not less["exact"]


@pytest.mark.parametrize(
    ("parameter", "delta", "reason"),
    [
        ("transformer.h.0.mlp.c_proj.bias", DenseDelta(torch.ones(32)), "is a bias"),
        ("transformer.h.0.ln_1.weight", DenseDelta(torch.ones(32)), "weight of a LayerNorm"),
        ("transformer.wte.weight", LowRankDelta(torch.ones(64, 1), torch.ones(1, 32)), "weight of a Embedding"),
    ],
)
def test_parameters_that_lora_cannot_change_are_refused_even_with_a_rank(world, parameter, delta, reason):
    total = DeltaSum(delta.shape, torch.float32, torch.device("cpu"))
    total.add(delta)
    with pytest.raises(ConfigurationError, match=rf"{reason}.*only\. Use to=hf"):
        adapters.make_adapter(load(world / "model"), {parameter: total}, rank=2)


def test_sums_of_all_kinds_of_deltas():
    generator = torch.Generator().manual_seed(0)
    low = LowRankDelta(torch.randn(6, 2, generator=generator), torch.randn(2, 10, generator=generator))
    sparse = SparseDelta(torch.tensor([3]), torch.randn(1, 6, generator=generator), torch.tensor([6, 10, 1]))
    masked = MaskedDelta.masked(low, torch.rand(6, 10, generator=generator) > 0.5)
    total = DeltaSum((6, 10), torch.float32, torch.device("cpu"))
    total.add(low)
    total.add(sparse)
    summed = total.delta()
    assert isinstance(summed, LowRankDelta) and summed.rank == 3
    assert torch.allclose(summed.dense(), low.dense() + sparse.dense(), atol=1e-5)
    total.add(masked)
    assert not total.is_low_rank and isinstance(total.delta(), DenseDelta)
    assert torch.allclose(total.delta().dense(), low.dense() + sparse.dense() + masked.dense(), atol=1e-5)


def few_directions(generator):
    """Updates without end, whose sum has rank 3 however many there are."""
    left, right = torch.randn(6, 3, generator=generator), torch.randn(3, 10, generator=generator)
    while True:
        place = int(torch.randint(3, (), generator=generator))
        yield LowRankDelta(left[:, [place]] * torch.randn((), generator=generator), right[[place]])


@pytest.mark.parametrize("dense_at_last", [False, True])
def test_a_sum_holds_no_more_the_more_updates_there_are(dense_at_last):
    def after(n):
        endless = few_directions(torch.Generator().manual_seed(0))
        total = DeltaSum((6, 10), torch.float32, torch.device("cpu"))
        wanted = torch.zeros(6, 10, dtype=torch.float64)
        next(endless)  # it has what it draws from
        before = tensor_bytes()
        for delta in islice(endless, n):
            total.add(delta)
            delta.add_to_(wanted)
        del delta
        return total, wanted, tensor_bytes() - before

    (_, _, few), (total, wanted, many) = after(10), after(60)
    assert 0 < few <= many <= 6 * 10 * 8, "no more than the matrix takes in float64"
    assert total.is_low_rank
    if dense_at_last:
        total.add(DenseDelta(torch.ones(6, 10)))
        assert not total.is_low_rank and isinstance(total.delta(), DenseDelta)
        assert total.delta().value.dtype == torch.float32
        wanted += 1
    else:
        assert isinstance(total.delta(), LowRankDelta) and total.delta().rank == 3, "no direction is rounding alone"
    assert torch.allclose(total.delta().dense().double(), wanted, atol=1e-5)


@pytest.mark.parametrize(("rank", "limit"), [(1, 1), (2, 8), (33, 64), (257, 320), (512, 512), (513, None)])
def test_the_rank_that_vllm_must_be_started_with(rank, limit):
    assert vllm_rank(rank) == limit


def test_plain_deltas_are_the_whole_update(world, tmp_path):
    for editor, form in (("memit", LowRankDelta), ("ft", DenseDelta)):
        export(world / editor, "deltas", tmp_path / editor, device="cpu")
        deltas = read_deltas(tmp_path / editor)
        model, edited = load(world / "model"), load(world / f"{editor}-edited")
        changed = {n for n, p in edited.named_parameters() if not torch.equal(p, model.get_parameter(n))}
        assert changed == set(deltas)
        for name, delta in deltas.items():
            assert isinstance(delta, form)
            change = edited.get_parameter(name) - model.get_parameter(name)
            assert torch.allclose(delta.dense(), change, atol=1e-5) and change.norm() > 1e-3


def test_a_ledger_of_the_demo_model_names_it(tmp_path):
    model, tokenizer = load(demo.CHECKPOINT), AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    edit_model(
        model, tokenizer, list(load_facts("demo"))[:2], "mend", ledger=tmp_path / "ledger", progress=False,
    )  # fmt: skip
    record = export(tmp_path / "ledger", "peft", tmp_path / "out", device="cpu")
    assert record["base"]["pretrained"] == "demo"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# demo after 2 knowledge edits" in card and record["base"]["fingerprint"] in card
    # All that a task asks about a fact, which no edit depends on and no hash knows.
    there = exported_facts(tmp_path / "out")
    assert list(there) == list(load_facts("demo"))[:2]
    assert all(fact.portability and fact.generation_prompts for fact in there)
    file = tmp_path / "ledger" / "ops" / "00000.json"
    older = json.loads(file.read_text())
    for fact in older["facts"]:  # as releases wrote it that did not keep them
        del fact["portability"], fact["generation_prompts"]
    file.write_text(json.dumps(older))
    check(tmp_path / "ledger", tmp_path / "out", device="cpu")
