"""The adapter to EasyEdit: its mechanics with a small package of the same build, its results with a real clone."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import edit_model
from lm_eval_edit.editors._shared.difference import difference
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.facts.fact import parse_record
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta, SparseDelta
from tests.support.tiny import FACTS, NESTED_TEMPLATES, TEMPLATES, same_weights, tiny_model, tiny_tokenizer, weights_of

# What EasyEdit's package looks like from outside, and what it does to the process: it seeds at import, configures
# logging, prints, caches in module globals, leaves hooks, gradients and frozen parameters behind.
HPARAMS = """
from dataclasses import dataclass
import yaml

@dataclass
class Hparams:
    alg_name: str
    model_name: str
    device: str
    rewrite_module_tmp: str
    layers: list
    scale: float
    mom2_adjustment: bool = False
    context_template_length_params: tuple = ((5, 5),)

    @classmethod
    def from_hparams(cls, path):
        return cls(**yaml.safe_load(open(path)))

@dataclass
class Batch(Hparams):
    mom2_dataset: str = "wikipedia"
"""
METHODS = """
import os, random
import numpy, torch
from ..hparams import Batch, Hparams

CONTEXT_TEMPLATES_CACHE = None
COV_CACHE = {}
cache_c_new = False

class Executor:
    def __init__(self):
        self.first = None

    def apply_to_model(self, model, tok, requests, hparams: Hparams, copy=False, return_orig_weights=False, **kwargs):
        self.first = self.first or model
        model.transformer.h[0].mlp.c_proj.bias.data += 1
        return model, {}

def weight(model, hparams):
    return model.get_submodule(hparams.rewrite_module_tmp.format(hparams.layers[0])).weight

def apply_rome(model, tok, request, hparams: Hparams, copy=False, return_orig_weights=False, **kwargs):
    print("editing", request[0]["prompt"], "->", request[0]["target_new"], tok.padding_side, CONTEXT_TEMPLATES_CACHE)
    w = weight(model, hparams)
    for p in model.parameters():
        p.requires_grad_(False)
    w.requires_grad_(True)
    (w.sum() * 2).backward()
    model.transformer.register_forward_hook(lambda *a: None)
    model.config.use_cache = False
    if not hasattr(model, "seen"):  # as EasyEdit's MEND, which hooks a model once
        model.seen, w.note = True, "pinned"
    with torch.no_grad():
        w += hparams.scale * torch.outer(torch.randn(w.shape[0]).to(w), torch.ones(w.shape[1]).to(w))
    return model, {}

def apply_kn(model, tok, request, hparams: Hparams, copy=False, return_orig_weights=False, **kwargs):
    with torch.no_grad():
        weight(model, hparams)[3] += hparams.scale
    return model, lambda: None

def apply_ft(model, tok, requests, hparams: Hparams, copy=False, return_orig_weights=False, **kwargs):
    with torch.no_grad():
        w = weight(model, hparams)
        w += torch.randn(w.shape).to(w)
    if hparams.scale < 0:
        raise RuntimeError("exploded")
    return model, {}

def apply_alphaedit(model, tok, requests, hparams: Batch, copy=False, return_orig_weights=False, **kwargs):
    global cache_c, cache_c_new
    ((name, c),) = COV_CACHE.items()
    if not cache_c_new:
        cache_c, cache_c_new = torch.zeros(1, *c.shape), True
    with torch.no_grad():
        weight(model, hparams)[:] += cache_c[0].sum() + len(requests)
    cache_c += torch.ones(1, len(c), 1) @ torch.ones(1, 1, len(c))
    return model, {}
"""
ALG_DICT = """
from ..models.methods import Executor, apply_alphaedit, apply_ft, apply_kn, apply_rome
ALG_DICT = {"ROME": apply_rome, "KN": apply_kn, "FT": apply_ft, "MEND": Executor().apply_to_model,
            "AlphaEdit": apply_alphaedit, "GRACE": apply_kn}
"""
INIT = """
import logging, os, random
import numpy, torch
os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
random.seed(42); numpy.random.seed(42); torch.manual_seed(42)
logging.getLogger().addHandler(logging.NullHandler())
from .util.alg_dict import ALG_DICT
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with a package `easyeditor`; forgotten again afterwards."""
    package = tmp_path / "clone" / "easyeditor"
    files = {"__init__.py": INIT, "hparams.py": HPARAMS, "util/__init__.py": "", "util/alg_dict.py": ALG_DICT}
    for name, text in (files | {"models/__init__.py": "", "models/methods.py": METHODS}).items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "easyeditor"}
    yield package.parent
    for name in [name for name in sys.modules if name.split(".")[0] == "easyeditor"]:
        del sys.modules[name]
    sys.modules.update(kept)


def edit(clone, method="ROME", facts=FACTS[:1], model=None, templates=TEMPLATES, **extra):
    options = {"layers": [1], "scale": 0.1, "easyedit_path": str(clone)} | extra
    model = model or tiny_model()
    size = options.pop("edit_batch_size", 1)
    return edit_model(
        model, tiny_tokenizer(), facts, f"easyeditor:{method}", edit_batch_size=size, options=options,
        context_templates=templates, second_moments=options.pop("second_moments", None),
        ledger=options.pop("ledger", None), progress=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- what is taken


def test_a_rank_one_edit_becomes_a_rank_one_delta_and_the_model_is_put_back(clone):
    model = tiny_model()
    kept, config = weights_of(model), dict(vars(model.config))
    ledger = edit(clone, model=model)
    assert not same_weights(model, kept)
    ((name, delta),) = ledger.operations[0].deltas.items()
    assert name == "transformer.h.1.mlp.c_proj.weight"
    assert isinstance(delta, LowRankDelta) and delta.rank == 1
    ledger.restore()
    assert same_weights(model, kept)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.transformer._forward_hooks
    assert vars(model.config) == config
    assert not hasattr(model, "seen") and not hasattr(model.get_parameter(name), "note")


def test_changed_neurons_become_a_sparse_delta_and_other_changes_a_dense_one(clone):
    (delta,) = edit(clone, "KN").operations[0].deltas.values()
    assert isinstance(delta, SparseDelta) and delta.index.tolist() == [3]
    (delta,) = edit(clone, "FT", FACTS[:2], edit_batch_size=2).operations[0].deltas.values()
    assert isinstance(delta, DenseDelta)
    ((name, delta),) = edit(clone, "MEND").operations[0].deltas.items()
    assert name.endswith("bias") and isinstance(delta, DenseDelta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 5, 40])
def test_low_rank_is_found_up_to_round_off(dtype, rank):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(300, 500, generator=generator, dtype=dtype)
    update = torch.randn(300, rank, generator=generator, dtype=dtype) @ torch.randn(rank, 500, generator=generator).to(
        dtype
    )
    delta = difference(before, before + 0.01 * update)
    assert isinstance(delta, LowRankDelta) and delta.rank == rank
    error = (delta.dense(torch.float64) - 0.01 * update.double()).norm() / (0.01 * update.double()).norm()
    assert error < 1e4 * torch.finfo(dtype).eps


def test_a_difference_that_is_not_low_rank_or_as_small_as_round_off_stays_exact():
    before = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    for size in (1.0, 1e-6):
        after = before + size * torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
        delta = difference(before, after)
        assert isinstance(delta, DenseDelta)
        torch.testing.assert_close(before + delta.value, after, rtol=0, atol=1e-7)
    columns = before.clone()
    columns[:, 5] += 1
    delta = difference(before, columns)
    assert isinstance(delta, SparseDelta) and torch.equal(before + delta.dense(), columns)


# --------------------------------------------------------------------------------------------- no trace in the process


def test_the_process_is_left_as_it_was(clone, capsys, caplog):
    caplog.set_level(logging.DEBUG, logger="lm_eval_edit")
    tokenizer_side = tiny_tokenizer().padding_side
    os.environ.pop("CUDA_LAUNCH_BLOCKING", None)
    handlers, here, path = logging.getLogger().handlers[:], Path.cwd(), sys.path[:]
    torch.manual_seed(7), random.seed(7), numpy.random.seed(7)
    expected = torch.randn(3), random.random(), numpy.random.random()
    torch.manual_seed(7), random.seed(7), numpy.random.seed(7)
    ledger = edit(clone, model=tiny_model_without_seeding())
    assert torch.equal(torch.randn(3), expected[0])
    assert (random.random(), numpy.random.random()) == expected[1:]
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ
    assert logging.getLogger().handlers == handlers and Path.cwd() == here and sys.path == path
    assert "editing" not in capsys.readouterr().out
    line = next(record.message for record in caplog.records if record.message.startswith("editing"))
    assert line == f"editing The mother tongue of Nils Albrecht -> {FACTS[0].target_new} right {list(TEMPLATES)}"
    methods = sys.modules["easyeditor.models.methods"]
    assert methods.CONTEXT_TEMPLATES_CACHE is None and methods.COV_CACHE == {}
    assert ledger.operations and tiny_tokenizer().padding_side == tokenizer_side


def tiny_model_without_seeding():
    state = torch.get_rng_state()
    model = tiny_model()
    torch.set_rng_state(state)
    return model


def test_an_executor_does_not_hold_on_to_the_first_model(clone):
    edit(clone, "MEND")
    executor = sys.modules["easyeditor.util.alg_dict"].ALG_DICT["MEND"].__self__
    assert executor.first is None


def test_a_failing_method_leaves_the_model_as_it_was(clone):
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises(UserError, match=r"EasyEdit's FT failed on fact\(s\) 0: RuntimeError: exploded"):
        edit(clone, "FT", model=model, scale=-1)
    assert same_weights(model, kept)


def test_random_numbers_depend_on_the_operation_alone(clone, tmp_path):
    whole = edit(clone, facts=FACTS[:2])
    edit(clone, facts=FACTS[:1], ledger=tmp_path / "ledger")
    resumed = edit(clone, facts=FACTS[:2], ledger=tmp_path / "ledger")
    for a, b in zip(whole.operations, resumed.operations, strict=True):
        for name, delta in a.deltas.items():
            assert torch.equal(delta.dense(), b.deltas[name].dense())


def test_accumulated_keys_travel_with_the_ledger_and_not_with_the_process(clone, tmp_path):
    moments = {"transformer.h.1.mlp.c_proj": torch.eye(96)}
    extra = {"second_moments": moments, "templates": NESTED_TEMPLATES}
    whole = edit(clone, "AlphaEdit", FACTS[:2], **extra)
    sums = [float(op.deltas["transformer.h.1.mlp.c_proj.weight"].dense().max()) for op in whole.operations]
    assert sums == pytest.approx([1, 1 + 96 * 96])  # the second operation saw the first one's keys
    again = edit(clone, "AlphaEdit", FACTS[:1], **extra, ledger=tmp_path / "ledger")
    assert float(again.operations[0].deltas["transformer.h.1.mlp.c_proj.weight"].dense().max()) == pytest.approx(1)
    resumed = edit(clone, "AlphaEdit", FACTS[:2], **extra, ledger=tmp_path / "ledger")
    assert float(resumed.operations[1].deltas["transformer.h.1.mlp.c_proj.weight"].dense().max()) == pytest.approx(
        sums[1]
    )
    assert sum(t.numel() for t in resumed.operations[0].state.values()) < 96 * 96  # low rank, not a full matrix


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("GRACE", "gives no weight update: it keeps edits in a memory"),
        ("IKE", "examples before the prompt"),
        ("LoRA", "use editor=lora"),
        ("DeepEdit-Api", "paid service"),
    ],
)
def test_methods_without_weight_updates_are_refused(method, words):
    with pytest.raises(UserError, match=words):
        find_editor(f"easyeditor:{method}")


def problems(clone, method="ROME", **extra):
    with pytest.raises(ConfigurationError) as error:
        edit(clone, method, **extra)
    return error.value.problems[0]


def test_an_absent_package_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "easyeditor", None)
    assert "git clone https://github.com/zjunlp/EasyEdit" in problems(None, easyedit_path=None)
    assert "no folder with the package easyeditor" in problems(tmp_path)


def test_a_missing_module_is_named(clone):
    (clone / "easyeditor" / "util" / "alg_dict.py").write_text("import surely_missing_module")
    assert "No module named 'surely_missing_module'. docs/easyeditor.md" in problems(clone)
    assert "easyeditor" not in sys.modules


def test_hyper_parameters_are_easyedits_own(clone):
    with pytest.raises(ConfigurationError, match="missing 1 required positional argument: 'scale'"):
        edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], "easyeditor:ROME",
                   options={"layers": [1], "easyedit_path": str(clone)})  # fmt: skip
    assert "unexpected keyword argument 'scal'. scal: Did you mean 'scale'?" in problems(clone, scal=1)
    assert "the hyper-parameters are for MEMIT" in problems(clone, alg_name="MEMIT")
    assert "no such method" in problems(clone, "PMETT")
    with pytest.raises(UserError, match=r"which method\?"):
        find_editor("easyeditor")(find_editor("easyeditor").Options())
    with pytest.raises(ConfigurationError, match="edits one fact at a time"):
        edit(clone, facts=FACTS[:2], edit_batch_size=2)
    with pytest.raises(ConfigurationError, match="layer 9 is out of range"):
        edit(clone, layers=[9])


def test_other_editors_take_no_parameter():
    with pytest.raises(UserError, match="rome takes no parameter"):
        find_editor("rome:fast")


# ------------------------------------------------------------------------------------------------------ a real EasyEdit


@pytest.fixture(scope="module")
def easyedit_path():
    path = os.environ.get("EASYEDIT_PATH")
    if not path:
        pytest.skip("EASYEDIT_PATH names no clone of zjunlp/EasyEdit (docs/easyeditor.md says how to set one up)")
    return path


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("run", ["ROME", "ROMEseq", "R-ROME", "KN", "FT", "MEMIT", "MEMITbs2", "EMMET", "AlphaEdit"])
def test_a_real_easyedit_gives_the_stored_deltas(easyedit_path, reference, run, name):
    info = json.loads((reference / "deltas" / f"{run}_{name}.json").read_text())
    theirs = load_file(reference / "deltas" / f"{run}_{name}.safetensors")
    folder = reference / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    facts = [parse_record(entry, "reference", str(i)) for i, entry in enumerate(info["facts"])]
    batch = len(info["calls"][0]["case_ids"])
    tolerance = 1e-6 if run == "AlphaEdit" else 1e-11  # it solves in float32, where the number of threads shows
    sequences = [[fact] for fact in facts] if info["mode"] == "independent" else [facts]
    call = 0
    for sequence in sequences:
        ledger = edit_model(
            model, AutoTokenizer.from_pretrained(folder), sequence,
            f"easyeditor:{ {'ROMEseq': 'ROME', 'MEMITbs2': 'MEMIT'}.get(run, run) }",
            edit_batch_size=batch, options=info["hparams"] | {"easyedit_path": easyedit_path},
            context_templates=info["context_templates"], second_moments=folder / "second_moments.safetensors",
            progress=False,
        )  # fmt: skip
        for operation in ledger.operations:
            assert operation.deltas
            for parameter, delta in operation.deltas.items():
                wanted = theirs[f"call{call}/delta/{parameter}"]
                assert (delta.dense(torch.float64) - wanted).norm() / wanted.norm() <= tolerance
            call += 1
        ledger.restore()
    assert call == len(info["calls"])
