"""`sweep --share_blocks`: blocks below the edits run once for all checkpoints, figures the same to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lm_eval_edit.cli import main
from lm_eval_edit.editors.rome import Rome
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.lower_blocks import LowerBlocks
from lm_eval_edit.sweep import checking, folder
from lm_eval_edit.sweep.shared_blocks import Floor, floor_of, share_lines
from tests.support.small_sweeps import figures, small, sweep
from tests.support.tiny import tiny_model

ROME = {"editor": "rome", "edit_layers": 2, "mom2_adjustment": False, "v_num_grad_steps": 3, "label": "rome2"}
LORA = {"editor": "lora", "edit_layers": 1, "label": "lora1"}
#: Rows of three kinds, tasks that ask for answers, for probabilities, and about the row's own facts in earlier states.
WORLD = {
    "editors": [ROME, LORA, "kn"],
    "tasks": ["edithurt_sst2", "edithurt_boolq", "edithurt_rte_mc", "edithurt_editing"],
    "limit": 4,
    "n_edits": [1, 3],
    "model_args": {},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Every cell evaluated by whole passes."""
    root = tmp_path_factory.mktemp("alone") / "out"
    assert not sweep(root, **WORLD).failed
    return root


def counts(monkeypatch) -> list[LowerBlocks]:
    """What is shared from now on, model by model."""
    made: list[LowerBlocks] = []
    init = LowerBlocks.__init__

    def noted(self, *args, **how):
        init(self, *args, **how)
        if self.limit != float("inf"):  # else the trial's
            made.append(self)

    monkeypatch.setattr(LowerBlocks, "__init__", noted)
    return made


def fingerprints(root: Path) -> dict[str, object]:
    """Ledgers and weights: of every operation the record but for its seconds, of every cell the weights."""
    found: dict[str, object] = {}
    for file in sorted(root.rglob("ops/*.json")):
        found[str(file.relative_to(root))] = json.loads(file.read_text())["fingerprint"]
    for file in sorted(root.rglob("ops/*.safetensors")):
        found[str(file.relative_to(root))] = file.read_bytes()
    for file in sorted(root.rglob("cell.json")):
        cell = json.loads(file.read_text())
        found[str(file.relative_to(root))] = (cell["weights_fingerprint"], cell["perplexity"], sorted(cell))
    return found


def test_every_cell_is_the_same_to_the_last_digit_and_lower_blocks_were_not_run(alone, tmp_path, monkeypatch):
    made = counts(monkeypatch)
    outcome = sweep(tmp_path / "out", share_blocks=1, **WORLD)
    assert figures(tmp_path / "out") == figures(alone) and not outcome.failed
    assert fingerprints(tmp_path / "out") == fingerprints(alone)
    assert json.loads((tmp_path / "out/sweep.json").read_text()) == json.loads((alone / "sweep.json").read_text())
    (shared,) = made
    assert shared.levels == (1, 2)
    assert shared.counts.hits > shared.counts.misses > 0 and not shared.counts.full and not shared.counts.others
    (line,) = outcome.shared
    assert line.startswith(f"demo: lower blocks shared: {shared.counts.hits} batches began above them")


def test_little_memory_costs_hits_and_changes_nothing(alone, tmp_path, monkeypatch):
    made = counts(monkeypatch)
    outcome = sweep(tmp_path / "out", share_blocks=0.0005, **WORLD)
    assert figures(tmp_path / "out") == figures(alone) and not outcome.failed
    (shared,) = made
    assert shared.counts.full and 0 < shared.counts.most <= 0.0005 * 2**30


def test_a_cell_computed_again_with_sharing_is_the_one_that_was_there(alone, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(alone, root)
    shutil.rmtree(root / "demo/rome2-demo-seed0/n00003")
    outcome = sweep(root, share_blocks=1, **WORLD)
    assert len(outcome.statuses) == 1 and figures(root) == figures(alone)


ONE = WORLD | {"editors": [ROME], "n_edits": [1]}


def test_an_editor_that_edits_below_what_it_says_is_not_believed(tmp_path, monkeypatch, caplog):
    sweep(tmp_path / "alone", **ONE)
    monkeypatch.setattr(Rome, "parameters", lambda self, model, architecture: [architecture.weight(3)])
    made = counts(monkeypatch)
    sweep(tmp_path / "out", share_blocks=1, **ONE)
    assert "rome2-demo-seed0: blocks are not shared: it has edited below block 3" in caplog.text
    assert figures(tmp_path / "out") == figures(tmp_path / "alone")
    assert made[0].counts.hits == 0, "the edited cell was evaluated whole, and the one before has other questions"


def test_weights_that_something_else_has_changed_are_seen(tmp_path, monkeypatch, caplog):
    compute = Rome.compute

    def impure(self, context, *args):
        with torch.no_grad():
            context.model.get_parameter(context.architecture.weight(0)).data[0, 0] += 1
        return compute(self, context, *args)

    monkeypatch.setattr(Rome, "compute", impure)
    made = counts(monkeypatch)
    sweep(tmp_path / "out", share_blocks=1, **ONE)
    assert "demo: blocks are not shared: the weights below block 2 have changed" in caplog.text
    assert made[0].counts.hits == 0


def test_floors():
    model = tiny_model()
    parts = Architecture.discover(model)
    assert floor_of([parts.weight(2), parts.weight(1)], parts) == Floor(1)
    assert floor_of(["transformer.h.2.attn.c_attn.weight"], parts) == Floor(2), "block 2 is run whole"
    assert floor_of([parts.weight(2), parts.weight(0)], parts).why == f"it edits block 0 ({parts.weight(0)})"
    assert "in no block" in floor_of([parts.weight(2), "transformer.wte.weight"], parts).why
    assert floor_of(None, parts) == Floor(0, "what it edits shows once it has")


def test_a_dry_run_says_what_is_shared_and_why_not():
    checked = checking.check(small(**WORLD), folder.SweepFolder(Path("nowhere")), dry_run=True)
    lines = share_lines(checked, 2)
    assert "up to 2 GiB" in lines[0]
    assert lines[1:3] == ["  below block 1: lora1-demo-seed0", "  below block 2: rome2-demo-seed0"]
    assert (
        lines[3].startswith("  not shared (it edits block 0 (") and lines[3].endswith("kn-demo-seed0") and not lines[4:]
    )


def test_where_nothing_can_be_shared_the_sweep_runs_and_says_why(tmp_path, monkeypatch, caplog):
    made = counts(monkeypatch)
    outcome = sweep(tmp_path / "out", share_blocks=1, **ONE | {"editors": "kn", "tasks": ["edithurt_sst2"]})
    assert not outcome.failed and not made and not outcome.shared
    assert "kn-demo-seed0: blocks are not shared: it edits block 0" in caplog.text


FLAGS = [
    "sweep", "--pretrained", "demo", "--editors", "rome", "--n_edits", "1", "--tasks", "edithurt_sst2", "--dry_run",
    "--share_blocks",
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["0"], "--share_blocks 0: want GiB"), (["-1"], "want GiB"), (["inf"], "want GiB"), (["nan"], "want GiB"),
        (["1", "--engine", "ray"], "--share_blocks: only with --engine local"),
        (["1", "--engine", "vllm"], "--share_blocks: only with --engine local"),
    ],
)  # fmt: skip
def test_it_is_refused_before_anything_is_looked_at(flags, told, capsys):
    assert main([*FLAGS, *flags]) == 1
    assert told in capsys.readouterr().err


def test_the_command_shares_and_tells(tmp_path, capsys):
    words = [word for word in FLAGS if word not in ("--dry_run", "rome")]
    words.insert(words.index("--editors") + 1, "rome,edit_layers=2,mom2_adjustment=False,v_num_grad_steps=3")
    assert main([*words, "1", "--limit", "4", "--device", "cpu", "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "demo: lower blocks shared: 1 batches began above them, 1 were kept" in out
