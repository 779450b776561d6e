"""The methods of 2025 and 2026, each through every door: a kill and a resumption, an export, a sweep, `ls`, presets."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lm_eval_edit import Ledger, demo, edit_model
from lm_eval_edit.cli import main
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.export import export
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.small_sweeps import sweep
from tests.support.tiny import (
    FACTS,
    NESTED_TEMPLATES,
    same_weights,
    save_tiny,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

FAMILY = {"layers": [0, 1], "v_num_grad_steps": 5, "v_lr": 0.5, "v_weight_decay": 1e-3}
ALPHA = FAMILY | {"L2": 1.0, "nullspace_threshold": 0.5}
#: Name -> (editor, options, whether the update has factors, whether operations leave each other something).
WAYS: dict[str, tuple[str, dict[str, Any], bool, bool]] = {
    "memit_seq": ("memit_seq", FAMILY, True, True),
    "encore": ("encore", FAMILY, True, True),
    "BLUE": ("memit", FAMILY | {"own_targets": True}, True, True),  # λ, found by the first
    "BLUE over alphaedit": ("alphaedit", ALPHA | {"own_targets": True}, True, True),
    "NAS": ("memit", FAMILY | {"norm_anchor": "auto", "norm_anchor_facts": 3}, True, True),
    "NAS over memit_seq": ("memit_seq", FAMILY | {"norm_anchor": "auto", "norm_anchor_facts": 4}, True, True),
    "sphere": ("sphere", ALPHA | {"over": "alphaedit"}, True, True),
    "betaedit": ("betaedit", ALPHA | {"mom2_update_weight": 0.5, "refresh_every": 2}, True, True),
    "ultraedit": ("ultraedit", {"layers": [0, 1]}, True, True),
    "LocFT": ("ft", {"layers": [1], "append_eos": True, "shuffle": True, "minibatch": 1, "num_steps": 3}, False, False),
}
every_way = pytest.mark.parametrize("name", WAYS)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be caught on its way."""


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model")


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def edit(model, name, ledger=None) -> Ledger:
    editor, options, _, _ = WAYS[name]
    nested = "v_lr" in options
    return edit_model(
        model, tiny_tokenizer(), FACTS, editor, 2, options=options, ledger=ledger, progress=False,
        context_templates=NESTED_TEMPLATES if nested else None,
        second_moments=tiny_second_moments(model) if nested else None,
    )  # fmt: skip


@every_way
def test_killed_within_an_operation_it_goes_on_to_the_same_bits_and_restores(name, folder, tmp_path, monkeypatch):
    whole, resumed, ledger = load(folder), load(folder), tmp_path / "ledger"
    kept = weights_of(whole)
    edit(whole, name)
    cls = find_editor(WAYS[name][0])
    compute, calls = cls.compute, []

    def dies(self, context, facts, history=()):
        calls.append(len(history))
        if len(calls) == 2:
            compute(self, context, facts, history)  # as far as to its end, before anything is kept
            raise Killed
        return compute(self, context, facts, history)

    with monkeypatch.context() as patched:
        patched.setattr(cls, "compute", dies)
        with pytest.raises(Killed):
            edit(load(folder), name, ledger)
    assert calls == [0, 1]
    found = edit(resumed, name, ledger)
    assert same_weights(resumed, weights_of(whole)) and not same_weights(resumed, kept)
    states = [operation.state for operation in found.operations]
    assert bool(states[0]) is WAYS[name][3], "what later operations must know lies in the ledger"
    found.restore()
    assert same_weights(resumed, kept)


@every_way
def test_it_is_exported_and_read_again(name, folder, tmp_path):
    model = load(folder)
    ledger = edit(model, name, tmp_path / "ledger")
    kinds = {delta.kind for operation in ledger.operations for delta in operation.deltas.values()}
    assert (kinds == {"low_rank"}) is WAYS[name][2]
    export(tmp_path / "ledger", "hf", tmp_path / "hf", device="cpu")
    assert same_weights(load(tmp_path / "hf"), weights_of(model))
    if WAYS[name][2]:
        export(tmp_path / "ledger", "peft", tmp_path / "peft", device="cpu")  # compares its answers with the model's
        assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_each_is_a_row_of_a_sweep(tmp_path):
    """On the demo, whose presets are used; one layer has no two targets."""
    rows = [
        {"editor": "memit_seq"}, {"editor": "encore"}, {"editor": "betaedit"}, {"editor": "ultraedit"},
        {"editor": "sphere", "over": "alphaedit"}, {"editor": "memit", "norm_anchor": 50, "label": "NAS"},
        {"editor": "ft", "append_eos": True, "shuffle": True, "label": "LocFT"},
    ]  # fmt: skip
    sweep(tmp_path, editors=rows, n_edits=[0, 4], edit_batch_size=2, tasks=["edithurt_efficacy"], model_args={})
    cells = [(row.editor, cell) for row, cell in load_sweep(tmp_path).cells() if row is not None and cell.n_edits == 4]
    assert len(cells) == len(rows) and all(cell.status == "done" for _, cell in cells)
    answered = {name: cell.value("edithurt_efficacy").value for name, cell in cells}
    assert all(value >= 0.5 for value in answered.values()), answered


@pytest.mark.parametrize("editor", ["memit_seq", "encore", "sphere", "betaedit", "ultraedit", "ft", "lora"])
def test_ls_tells_every_option_and_where_the_published_figures_are_from(editor, capsys):
    assert main(["ls", "editors", editor]) == 0
    printed = capsys.readouterr().out
    assert all(option.name in printed for option in fields(find_editor(editor).Options))
    for preset in presets(editor):
        assert preset.source and preset.name in printed
    assert presets(editor) or editor == "sphere", "the editor it is over has them"


def test_the_demos_presets_need_no_search():
    config = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT, dtype=torch.float32).config
    for editor in ("memit_seq", "encore", "betaedit", "ultraedit", "ft", "lora"):
        assert any(preset.name == "demo" and preset.fits(config, {}) for preset in presets(editor)), editor
