"""Every file of a run is opened before the model loads: by `validate`, and by the plan of the run itself."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_edit import EditedHFLM, cli, edit_model
from lm_eval_edit._support.files import save_tensors
from lm_eval_edit.editors.base import BUILT_IN, find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.mend.archive import save_archive
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.models.architecture import Architecture
from tests.conftest import SHARED
from tests.support.mend_networks import INNER, trained_network
from tests.support.tiny import (
    FACTS,
    TEMPLATES,
    save_tiny,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    write_facts,
)

CASE = SHARED / "cases/operator/aboutlist.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opened")
    save_tiny(folder / "model")
    write_facts(folder / "facts.jsonl")
    return folder


@pytest.fixture
def refused(world, monkeypatch, capsys):
    """Checks that a run with these options is refused, by `validate` and by itself, without weights; the problems."""

    def check(**options) -> str:
        monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
        model, facts = str(world / "model"), str(world / "facts.jsonl")
        options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        with pytest.raises(ConfigurationError) as caught:
            EditedHFLM(model, edit_dataset=facts, device="cpu", **options)
        words = ",".join(f"{name}={value}" for name, value in options.items())
        status = cli.main(["validate", "--model_args", f"pretrained={model},edit_dataset={facts},device=cpu,{words}"])
        printed = capsys.readouterr().out
        assert status == 1
        for problem in caught.value.problems:
            assert f"  - {problem}" in printed
        return "\n".join(caught.value.problems)

    return check


def _state(**changes):
    state = trained_network().state_dict() | changes
    return {name: tensor for name, tensor in state.items() if tensor is not None}


KEY = "mend.(96, 32)"
ARCHIVES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no archive"),
    "cut": lambda path: (save_archive(path, _state(), INNER, {}), path.write_bytes(path.read_bytes()[:-99])),
    "cut in its header": lambda path: (
        save_archive(path, _state(), INNER, {}), path.write_bytes(path.read_bytes()[:99])
    ),
    "about is a list": lambda path: save_tensors(path, {"edit_lrs": torch.zeros(1)}, {"about": "[]"}),
    "about is no JSON": lambda path: save_tensors(path, {"edit_lrs": torch.zeros(1)}, {"about": "{"}),
    "about is deep": lambda path: save_tensors(path, {"edit_lrs": torch.zeros(1)}, {"about": "[" * 9999}),
    "no metadata": lambda path: save_tensors(path, _state()),
    "no names": lambda path: save_tensors(path, _state(), {"about": '{"format": "lm-eval-edit mend 1"}'}),
    "names are numbers": lambda path: save_tensors(
        path, _state(), {"about": '{"format": "lm-eval-edit mend 1", "inner_params": [1], "training": {}}'}
    ),
    "no training": lambda path: save_tensors(
        path, _state(), {"about": '{"format": "lm-eval-edit mend 1", "inner_params": ["a"], "training": 0}'}
    ),
    "no step sizes": lambda path: save_archive(path, _state(edit_lrs=None), INNER, {}),
    "step sizes of another shape": lambda path: save_archive(path, _state(edit_lrs=torch.zeros(2, 2)), INNER, {}),
    "nothing but step sizes": lambda path: save_archive(path, {"edit_lrs": torch.zeros(4)}, INNER, {}),
    "a tensor is missing": lambda path: save_archive(path, _state(**{f"{KEY}.u_mean": None}), INNER, {}),
    "a tensor is a number": lambda path: save_archive(path, _state(**{f"{KEY}.u_mean": torch.tensor(1.0)}), INNER, {}),
    "a tensor is a vector": lambda path: save_archive(
        path, _state(**{f"{KEY}.mlp.layers.0.u": torch.zeros(128)}), INNER, {}
    ),
    "a layer without number": lambda path: save_archive(
        path, _state(**{f"{KEY}.mlp.layers.x.u": torch.zeros(1)}), INNER, {}
    ),
    "a billion layers": lambda path: save_archive(
        path, _state(**{f"{KEY}.mlp.layers.999999999.u": torch.zeros(1)}), INNER, {}
    ),
    "not finite": lambda path: save_archive(
        path, _state(**{f"{KEY}.mlp.layers.0.bias": torch.full((128,), torch.nan)}), INNER, {}
    ),
    "another model's weights": lambda path: save_archive(
        path, _state(), [name.replace("h.2", "h.9") for name in INNER], {}
    ),
    "weights in another order": lambda path: save_archive(path, _state(), INNER[:1], {}),
    "a pickle that runs": lambda path: path.write_bytes(pickle.dumps(print)),
    "torch.save of a list": lambda path: torch.save([1], path),
    "torch.save of a list for a model": lambda path: torch.save({"model": [1]}, path),
    "torch.save with a text for a tensor": lambda path: torch.save({"model": _state() | {"edit_lrs": "x"}}, path),
    "a zip of something else": lambda path: numpy.savez(path.open("wb"), a=numpy.zeros(1)),
    "a folder": lambda path: path.mkdir(),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_mend_archives(refused, tmp_path, name):
    path = tmp_path / "archive"
    ARCHIVES[name](path)
    problems = refused(editor="mend", archive=path)
    assert (len(problems.splitlines()) == 1 and str(path) in problems) or "inner_params: " in problems


def test_the_archive_of_the_shared_case(refused):
    if not CASE.is_file():
        pytest.skip(f"{CASE} is not on this machine")
    assert str(CASE) in refused(editor="mend", archive=CASE)


def test_archives_within_a_wrapping_editor(refused, tmp_path):
    (tmp_path / "archive").write_bytes(b"")
    assert "neither a safetensors file nor" in refused(editor="rect", over="mend", archive=tmp_path / "archive")


HPARAMS = {
    "empty": (b"", "want a mapping"),
    "a list": (b"[1]", "want a mapping"),
    "not text": (b"\xff\xfe\x00", "not UTF-8"),
    "layers that are texts": (b"layers: [a]", "layers"),
    "layers in lists": (b"layers: [[1]]", "layers"),
    "nested templates": (b'context_templates: [["{}"]]', "wants a flat list"),
    "templates without a place": (b"context_templates: [x]", "once, where the prompt goes"),
    "templates that are numbers": (b"context_templates: [1]", "context_templates"),
    "lengths that are none": (b"context_template_length_params: [[a, b]]", "context_template_length_params"),
    "lengths of another form": (b"context_template_length_params: [5, 10]", "context_template_length_params"),
}


@pytest.mark.parametrize("name", HPARAMS)
def test_hyper_parameter_files(refused, tmp_path, name):
    content, message = HPARAMS[name]
    (tmp_path / "rome.yaml").write_bytes(content)
    assert message in refused(editor="rome", edit_config=tmp_path / "rome.yaml")


def test_a_folder_as_hyper_parameter_file(refused, tmp_path):
    assert "is a folder" in refused(editor="rome", edit_config=tmp_path)


MODULE = "transformer.h.1.mlp.c_proj"
MOMENTS = {
    "empty": (lambda path: path.write_bytes(b""), "not a readable safetensors file"),
    "another model's": (lambda path: save_tensors(path, {f"{MODULE}.second_moment": torch.eye(5)}), "has shape (5, 5)"),
    "a vector": (lambda path: save_tensors(path, {f"{MODULE}.second_moment": torch.ones(96)}), "has shape (96,)"),
    "too few tokens": (
        lambda path: save_tensors(
            path, {f"{MODULE}.second_moment": torch.eye(96), f"{MODULE}.count": torch.tensor(9)}
        ),
        "from 9 tokens",
    ),
    "a count that is none": (
        lambda path: save_tensors(
            path, {f"{MODULE}.second_moment": torch.eye(96), f"{MODULE}.count": torch.tensor(torch.nan)}
        ),
        "count of tokens",
    ),
    "not finite": (
        lambda path: save_tensors(path, {f"{MODULE}.second_moment": torch.full((96, 96), torch.inf)}),
        "not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_second_moments(refused, tmp_path, name):
    write, message = MOMENTS[name]
    write(tmp_path / "moments.safetensors")
    given = {"editor": "rome", "edit_layers": 1, "mom2_adjustment": True}
    assert message in refused(**given, edit_second_moments=tmp_path / "moments.safetensors")


@pytest.mark.parametrize("name", ["cut", "not a zip", "a vector"])
def test_published_second_moments(refused, tmp_path, name):
    path = tmp_path / f"{MODULE}_float32_mom2_100.npz"
    numpy.savez(path, **{"mom2.mom2": numpy.ones(3 if name == "a vector" else (96, 96)), "mom2.count": 500})
    if name != "a vector":
        path.write_bytes(path.read_bytes()[:200] if name == "cut" else b"nothing of the kind")
    given = {"editor": "rome", "edit_layers": 1, "mom2_adjustment": True}
    assert str(path) in refused(**given, edit_second_moments=path)


LEDGERS = {
    "cut": (lambda ops: (ops / "00001.safetensors").write_bytes(b"x" * 9), "00001.safetensors is not a readable"),
    "gone": (lambda ops: (ops / "00001.safetensors").unlink(), "00001.safetensors is missing"),
    "a record that is a list": (lambda ops: (ops / "00000.json").write_text("[]"), "00000.json is damaged"),
    "facts of another kind": (lambda ops: _edit_record(ops, facts=[1]), "00000"),
    "another run's": (lambda ops: _edit_record(ops, run="0" * 64), "is of another run"),
    "other facts": (lambda ops: _swap(ops), "belongs to another run"),
}


def _edit_record(ops, **changes):
    file = ops / "00000.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _swap(ops):
    facts = [json.loads((ops / f"0000{n}.json").read_text())["facts"] for n in (0, 1)]
    _edit_record(ops, facts=facts[1])


@pytest.fixture(scope="module")
def ledger(world):
    folder = world / "ledger"
    options = {"layers": [1], "v_num_grad_steps": 3, "context_templates": list(TEMPLATES)}
    edit_model(tiny_model(), tiny_tokenizer(), FACTS[:2], options=options, ledger=folder, progress=False)
    (world / "rome.yaml").write_text(json.dumps(options))
    return folder


@pytest.mark.parametrize("name", LEDGERS)
def test_ledgers(refused, world, ledger, tmp_path, name):
    spoil, message = LEDGERS[name]
    shutil.copytree(ledger, tmp_path / "ledger")
    spoil(tmp_path / "ledger" / "ops")
    given = {"editor": "rome", "n_edits": 2, "edit_seed": "none", "edit_config": world / "rome.yaml"}
    assert message in refused(**given, edit_ledger=tmp_path / "ledger")


def test_everything_at_once(refused, tmp_path):
    (tmp_path / "archive").write_bytes(b"")
    problems = refused(editor="mend", archive=tmp_path / "archive", n_edits=99, edit_corpus="nowhere.txt")
    assert len(problems.splitlines()) == 3


# ------------------------------------------------------------------------------------------- what an editor may change

OPTIONS = {
    "rome": {"layers": [1], "v_num_grad_steps": 2},
    "r_rome": {"layers": [1], "v_num_grad_steps": 2},
    "memit": {"layers": [0, 1], "v_num_grad_steps": 2},
    "memit_seq": {"layers": [0, 1, 2], "v_num_grad_steps": 2, "own_targets": True},
    "encore": {"layers": [0, 1], "v_num_grad_steps": 2},
    "emmet": {"layers": [1], "v_num_grad_steps": 2},
    "alphaedit": {"layers": [0, 1], "v_num_grad_steps": 2, "nullspace_threshold": 1e9},
    "betaedit": {"layers": [0, 1], "v_num_grad_steps": 2, "nullspace_threshold": 1e9},
    "kn": {},
    "ft": {"layers": [1], "num_steps": 1},
    "rect": {"over": "rome", "layers": [1], "v_num_grad_steps": 2},
    "prune": {"over": "memit", "layers": [1], "v_num_grad_steps": 2},
    "sphere": {"over": "memit", "layers": [0, 1], "v_num_grad_steps": 2},
    "ultraedit": {"layers": [0, 2], "lr": 1e-3},
    "lora": {"layers": [0, 2], "num_steps": 1, "target_modules": ["attn.c_attn", "mlp.c_fc"]},
    "random": {"like": "ft", "layers": [2], "num_steps": 1},
    "mend": {},
}


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "easyeditor"])
def test_an_editor_changes_what_it_says_it_may(tmp_path, name):
    options = dict(OPTIONS[name])
    if name == "mend":
        save_archive(tmp_path / "mend", trained_network().state_dict(), INNER, {})
        options["archive"] = str(tmp_path / "mend")
    model = tiny_model()
    resolved, problems = resolve(find_editor(name), model.config, options)
    assert not problems
    with torch.device("meta"):
        shapes = type(model)(model.config)
    said = resolved.editor.parameters(shapes, Architecture.discover(shapes))
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS[:1], name, options=options, second_moments=tiny_second_moments(model),
        progress=False,
    )  # fmt: skip
    changed = set(ledger.operations[0].deltas)
    assert changed <= set(said) and (changed == set(said) or name == "kn")


def test_validate_prints_them(world, tmp_path, capsys):
    save_archive(tmp_path / "mend", trained_network().state_dict(), INNER, {})
    model = f"pretrained={world / 'model'},edit_dataset={world / 'facts.jsonl'},device=cpu"

    def lines(options):
        cli.main(["validate", "--model_args", f"{model},{options}"])
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    assert "transformer.h.2.mlp.c_fc.weight (32 to 96)" in lines(f"editor=mend,archive={tmp_path / 'mend'}")
    assert "transformer.h.2.attn.c_attn.weight (32 to 96)" in lines("editor=lora")
    assert "edits transformer.h.0.mlp.c_proj.weight (96 to 32)" in lines("editor=kn")
    assert "transformer.h.1.mlp.c_proj.bias (32)" in lines("editor=ft,edit_layers=1")
    assert "transformer.h.1.mlp.c_proj.bias (32)" in lines("editor=random,like=ft,edit_layers=1")
