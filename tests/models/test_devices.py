"""One model over several devices: every editor takes its tensors' devices from the modules it touches.

Once with pretended devices, which real numbers pass through and no two of which mix; once on one device with the hooks
that `accelerate` puts on a split model; and, where there are two GPUs, on these.
"""

from __future__ import annotations

import functools
from pathlib import Path

import accelerate
import pytest
import torch

from lm_eval_edit import EditedHFLM, UserError, edit_model
from lm_eval_edit.editors._shared import left
from lm_eval_edit.editors.mend.archive import save_archive
from lm_eval_edit.editors.mend.network import MendNetwork
from lm_eval_edit.editors.mend.training import train_mend
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from lm_eval_edit.facts.fact import Facts
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.collect import collect_second_moments
from lm_eval_edit.moments.corpus import load_corpus
from lm_eval_edit.weights.delta import LowRankDelta
from tests.support.pretended_devices import PretendedDevices
from tests.support.tiny import (
    FACTS,
    SENTENCES,
    save_tiny,
    tiny_llama,
    tiny_model,
    tiny_tokenizer,
    write_facts,
)

ROME = {"layers": [1], "v_num_grad_steps": 7, "v_lr": 0.5, "v_weight_decay": 1e-3}
BATCH = {"layers": [0, 1, 2], "v_num_grad_steps": 4, "v_lr": 0.5}
EDITORS = {
    "rome": ROME | {"layers": [0, 2], "mom2_adjustment": True},
    "r_rome": ROME,
    "memit": BATCH,
    "emmet": BATCH | {"layers": [0, 2]},
    "alphaedit": BATCH | {"nullspace_threshold": 0.5},
    "kn": {"steps": 4},
    "kn paper": {"steps": 4, "variant": "paper", "adaptive_threshold": 0.05, "p": 0.0},
    "ft": {"layers": [0, 2], "num_steps": 3, "lr": 1e-3},
    "lora": {"num_steps": 3, "rank": 2},
    "mend": {},
    "rect": BATCH | {"over": "memit"},
    "rect pca": BATCH | {"over": "memit", "baseline": "pca"},
    "rect random": {"over": "kn", "baseline": "random", "steps": 4},
    "prune": BATCH | {"over": "memit", "alpha": 2.0},
    "betaedit": BATCH | {"nullspace_threshold": 0.5},
    "ultraedit": {"layers": [0, 2], "lr": 1e-3},
    "sphere": BATCH | {"over": "memit"},
    "random": BATCH | {"like": "memit"},
    "random dense": {"like": "ft", "layers": [0, 2], "num_steps": 2, "lr": 1e-3},
}
BATCHES = {
    "memit",
    "emmet",
    "alphaedit",
    "ft",
    "lora",
    "mend",
    "rect",
    "rect pca",
    "prune",
    "sphere",
    "ultraedit",
    "betaedit",
    "random",
}
SPLITS = {"early": [0, 1, 1], "late": [0, 0, 1], "three": [0, 1, 2]}  # the device of each layer


MODELS = {"gpt2": tiny_model, "llama": tiny_llama}


def device_map(model, split, devices) -> dict[str, object]:
    """Modules to devices as transformers' device_map: the embeddings with the first layer, the head with the last one,
    but where both share one weight."""
    architecture = Architecture.discover(model)
    trunk = architecture.blocks[0].rpartition(".")[0].rpartition(".")[0]
    placed = {block: devices[index] for block, index in zip(architecture.blocks, split, strict=True)}
    for name, _ in model.get_submodule(trunk).named_children():
        path = f"{trunk}.{name}"
        if not architecture.blocks[0].startswith(f"{path}."):
            is_norm = "norm" in name or name == "ln_f"
            placed[path] = devices[split[-1] if is_norm else split[0]]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return placed | {"lm_head": devices[split[0] if tied else split[-1]]}


@pytest.fixture(scope="module")
def mend_archive(tmp_path_factory):
    """An untrained hypernetwork of each model's: it passes gradients on, normalised."""
    files = {}
    for kind, make in MODELS.items():
        model = make()
        architecture = Architecture.discover(model)
        names = [architecture.weight(layer) for layer in range(3)]
        network = MendNetwork(names, [(architecture.key_size, 32)] * 3, 4, 1e-2, torch.Generator().manual_seed(0))
        for transform in network.mend.values():
            draw = torch.Generator().manual_seed(1)
            transform.observe(torch.randn(9, architecture.key_size, generator=draw), torch.randn(9, 32, generator=draw))
        files[kind] = tmp_path_factory.mktemp("mend") / f"{kind}.safetensors"
        save_archive(files[kind], network.state_dict(), names, {})
    return files


def second_moments(model) -> dict[str, torch.Tensor]:
    architecture = Architecture.discover(model)
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(3, 400, architecture.key_size, generator=draw, dtype=torch.float64)
    return {path: k.T @ k / 400 for path, k in zip(architecture.down_projections, keys, strict=True)}


def edits(model, editor: str, archive: Path) -> tuple[list, list]:
    """All deltas and fingerprints of two or three operations."""
    options = EDITORS[editor]
    batch = 2 if editor in BATCHES else 1
    if editor == "mend":
        options = {"archive": str(archive)}
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS[:3] if batch == 1 else FACTS, editor.split()[0], batch, options,
        second_moments=second_moments(model), progress=False,
    )  # fmt: skip
    deltas = [{name: delta.tensors() for name, delta in operation.deltas.items()} for operation in ledger.operations]
    return deltas, [operation.record["fingerprint"] for operation in ledger.operations]


def same_deltas(a, b) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[n][f], y[n][f]) for n in x for f in x[n])
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def whole(mend_archive):
    """What an editor gives on a model without hooks, its passes cut as they are on some kind of device."""

    def edited(kind, editor, device="cpu"):
        with pytest.MonkeyPatch.context() as patched:
            if device not in left.KEPT_ON:
                patched.setattr(left, "KEPT_ON", frozenset())
            return edits(MODELS[kind](), editor, mend_archive[kind])

    return functools.cache(edited)


@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.parametrize("kind", MODELS)
def test_no_editor_mixes_devices(kind, editor, mend_archive, whole):
    wanted, fingerprints = whole(kind, editor, "cuda")
    model, mode = MODELS[kind](), PretendedDevices()
    with mode:
        split_over(mode, model, "three")
        got, seen = edits(model, editor, mend_archive[kind])
    assert mode.moved > 0
    assert seen == fingerprints and same_deltas(got, wanted)


@pytest.mark.parametrize("editor", ["memit", "ft", "lora", "prune"])
def test_no_editor_mixes_devices_in_half_precision(editor):
    _, fingerprints = edits(tiny_llama().bfloat16(), editor, None)
    model, mode = tiny_llama().bfloat16(), PretendedDevices()
    with mode:
        split_over(mode, model, "three")
        assert edits(model, editor, None)[1] == fingerprints


def split_over(mode: PretendedDevices, model, split: str) -> None:
    """Place a model's parts as `split` says, with accelerate's own hooks between them."""
    placed = device_map(model, SPLITS[split], [f"cuda:{index}" for index in range(3)])
    for path, device in reversed(placed.items()):
        mode.place(model.get_submodule(path), device)
    accelerate.dispatch_model(model, placed, main_device="cuda:0", force_hooks=True)


def test_the_deltas_of_a_schedule_are_kept_on_the_cpu(whole):
    """Without a folder for the ledger they are held for the whole run, beside the model and its originals."""
    wanted, _ = whole("llama", "alphaedit")
    model, mode = tiny_llama(), PretendedDevices()
    with mode:
        split_over(mode, model, "three")
        ledger = edit_model(
            model, tiny_tokenizer(), FACTS, "alphaedit", 2, EDITORS["alphaedit"], second_moments=second_moments(model),
            progress=False,
        )  # fmt: skip
        for operation in ledger.operations:
            held = [t for delta in operation.deltas.values() for t in delta.tensors().values()]
            assert operation.state and {mode.of(t).type for t in (*held, *operation.state.values())} == {"cpu"}
        ledger.restore()
        ledger.apply()
    got = [{name: delta.tensors() for name, delta in operation.deltas.items()} for operation in ledger.operations]
    assert same_deltas(got, wanted)


def test_on_the_cpu_nothing_is_copied_for_it():
    ledger = edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], "ft", options=EDITORS["ft"], progress=False)
    given = LowRankDelta(torch.ones(96, 1), torch.ones(1, 32))
    operation = ledger.append(FACTS[1:2], {"w": given}, {"keys": given.left}, {})
    assert operation.deltas["w"].left is given.left and operation.state["keys"] is given.left


def test_pretended_devices_do_not_mix():
    with PretendedDevices() as mode:
        here, there = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")
        for mixing in (
            lambda: here + there,
            lambda: here @ there,
            lambda: here + torch.ones(3),
            lambda: torch.cat([here, there]),
            lambda: here[torch.zeros(1, dtype=torch.long, device="cuda:1")],
            lambda: here.index_add_(0, torch.zeros(1, dtype=torch.long), here[:1]),
            lambda: torch.where(here > 0, here, there),
            lambda: torch.nn.functional.linear(here, torch.ones(2, 3)),
        ):
            with pytest.raises(RuntimeError, match="to be on the same device"):
                mixing()
        assert mode.moved == 0
        sums = (here + there.to(here.device), here * torch.tensor(2.0), here[torch.tensor([0])], here.new_zeros(2))
        assert {str(tensor.device) for tensor in sums} == {"cuda:0"} and mode.moved == 1
        weight = torch.nn.Parameter(torch.ones(3))
        (gradient,) = torch.autograd.grad((weight.to(there.device) * there).sum(), weight)
        assert gradient.device == weight.device == torch.device("cpu")


def test_a_model_that_mixes_devices_is_noticed():
    model, mode = tiny_model(), PretendedDevices()
    with mode:
        split_over(mode, model, "late")
        ids = torch.tensor([[1, 2, 3]])
        model(input_ids=ids)  # accelerate moves what goes from block to block
        accelerate.hooks.remove_hook_from_module(model.transformer.h[2], recurse=True)
        with pytest.raises(RuntimeError, match="to be on the same device"):
            model(input_ids=ids)


@pytest.mark.parametrize("kind", MODELS)
def test_second_moments_are_summed_where_the_layers_are(kind, tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(SENTENCES * 60))
    corpus = load_corpus(str(file))

    def collected(model, name):
        folder = tmp_path / name
        return collect_second_moments(model, tiny_tokenizer(), [0, 1, 2], corpus, 1500, folder=folder, progress=False)

    model, mode = MODELS[kind](), PretendedDevices()
    modules = Architecture.discover(model).down_projections
    wanted = collected(MODELS[kind](), "whole")
    with mode:
        split_over(mode, model, "three")
        got = collected(model, "split")
    assert mode.moved > 0 and all(torch.equal(got[module], wanted[module]) for module in modules)


@pytest.mark.parametrize("kind", MODELS)
def test_mend_is_trained_on_a_split_model(kind, tmp_path):
    facts = Facts(FACTS, source="test")
    settings = MendTrainingSettings(max_steps=2, val_interval=2, val_facts=1, batch_size=2, rank=4, patience=10, seed=0)

    def trained(model, name):
        return train_mend(
            model, tiny_tokenizer(), facts, tmp_path / name, settings, progress=False, report=lambda _: None
        )

    model, mode = MODELS[kind](), PretendedDevices()
    wanted = trained(MODELS[kind](), "whole")
    with mode:
        split_over(mode, model, "three")
        got = trained(model, "split")
    assert mode.moved > 0 and got == wanted


@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_hooks_of_a_split_model_change_no_bit(kind, editor, mend_archive, whole):
    wanted = whole(kind, editor)
    model = MODELS[kind]()
    accelerate.dispatch_model(model, device_map(model, [0, 0, 0], ["cpu"]), main_device="cpu", force_hooks=True)
    assert sum(hasattr(module, "_hf_hook") for module in model.modules()) > 5
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    got = edits(model, editor, mend_archive[kind])
    assert got[1] == wanted[1] and same_deltas(got[0], wanted[0])
    assert [module.__dict__.get("forward") for module in model.modules()] == forwards, "the hooks are all still there"


def test_offloaded_weights_are_refused_with_the_remedy(tmp_path):
    save_tiny(tmp_path / "model", max_shard_size="20KB")
    placed = device_map(tiny_model(), [0, 0, 1], ["cpu", "disk"])
    with pytest.raises(UserError, match=r"parameters \(transformer.h.2.* are offloaded .* use a device that holds"):
        EditedHFLM(
            str(tmp_path / "model"), device="cpu", parallelize=True, device_map=placed,
            offload_folder=str(tmp_path / "offload"), editor="rome", edit_layers=1,
            edit_dataset=str(facts_file(tmp_path)),
        )  # fmt: skip


def facts_file(folder: Path) -> Path:
    file = folder / "facts.jsonl"
    write_facts(file)
    return file


# --------------------------------------------------------------------------------------------------- on real devices


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("split", ["early", "late"])
def test_every_editor_on_two_gpus_as_on_one(kind, editor, split, mend_archive):
    wanted, _ = edits(MODELS[kind]().double().to("cuda:0"), editor, mend_archive[kind])
    model = MODELS[kind]().double()
    accelerate.dispatch_model(model, device_map(model, SPLITS[split], ["cuda:0", "cuda:1"]), main_device="cuda:0")
    got, _ = edits(model, editor, mend_archive[kind])
    for a, b in zip(got, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            for field in a[name]:
                torch.testing.assert_close(a[name][field].cpu(), b[name][field].cpu(), rtol=1e-6, atol=1e-9)


# ----------------------------------------------------------------------------------------------- the default device


def test_what_is_there_is_the_default(monkeypatch):
    from lm_eval_edit.models.devices import default_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device() == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize("given", [{}, {"device": None}, {"device": "cuda:0"}])
def test_a_machine_without_a_gpu_needs_no_device_option(given):
    from lm_eval_edit import EditedHFLM

    assert EditedHFLM(editor="none", **given).device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_a_device_that_is_not_there_is_refused_in_a_sentence(capsys, tmp_path):
    from lm_eval_edit import EditedHFLM, cli

    for device in ("cuda", "cuda:7", "gpu"):
        with pytest.raises(UserError, match=f"device={device}: .*want cpu, cuda"):
            EditedHFLM(editor="none", device=device)
    for command in (
        ["sweep", "--pretrained", "demo", "--editors", "rome", "--n_edits", "1", "-o", tmp_path / "out"],
        ["train", "mend", "--output", tmp_path / "mend.safetensors"],
    ):
        assert cli.main([*map(str, command), "--device", "cuda"]) == 1
        assert "--device cuda: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_stats_without_a_device_option(tmp_path, monkeypatch, capsys):
    from lm_eval_edit import cli

    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path))
    (tmp_path / "corpus.txt").write_text("The pond is near the garden.\n" * 20)
    arguments = ["--layers", "0", "--corpus", str(tmp_path / "corpus.txt"), "--tokens", "20"]
    assert cli.main(["stats", "--model_args", "pretrained=demo", *arguments]) == 0
    assert "512 dimensions, 20 tokens of" in capsys.readouterr().out
