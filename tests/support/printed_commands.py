"""Exports of a tiny model, and what the commands that they print say when they are run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from transformers import AutoModelForCausalLM

from lm_eval_edit import edit_model
from lm_eval_edit.export import export
from tests.conftest import ROOT
from tests.support.processes import python
from tests.support.tiny import LEARNABLE, TEMPLATES, save_tiny, tiny_second_moments, tiny_tokenizer

ROME = {"v_num_grad_steps": 20, "v_lr": 0.5, "layers": [1], "context_templates": list(TEMPLATES)}
MEMIT = ROME | {"context_templates": [["{}"], ["Therefore . {}"]], "layers": [0, 1], "mom2_update_weight": 1}


def make_exports(root: Path, model=None) -> Path:
    """`model`, and of two ROME and two MEMIT edits `rome-peft`, `rome-hf`, `memit-peft`, `memit-hf`."""
    base = save_tiny(root / "model", model)
    for name, options, size in (("rome", ROME, 1), ("memit", MEMIT, 2)):
        loaded = AutoModelForCausalLM.from_pretrained(base).eval()
        edit_model(
            loaded, tiny_tokenizer(), LEARNABLE, name, edit_batch_size=size, options=options, progress=False,
            second_moments=tiny_second_moments(loaded), ledger=root / f"{name}-ledger",
        )  # fmt: skip
        for form in ("peft", "hf"):
            export(root / f"{name}-ledger", form, root / f"{name}-{form}", device="cpu", pretrained=str(base))
    return root


def in_the_card(folder: Path) -> list[str]:
    """The commands of an export's README, line by line."""
    return re.findall(r"^    (lm_eval .+)$", (folder / "README.md").read_text(encoding="utf-8"), flags=re.M)


def target_log_probability(folder: Path) -> list[float]:
    """Of each fact's new object, by the samples that a run has logged."""
    (samples,) = folder.rglob("samples_edithurt_efficacy_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    found = {line["doc"]["fact_id"]: line["filtered_resps"] for line in lines}
    return [sum(float(r[2][0]) for r in found[fact.id] if r[0] == "target") for fact in LEARNABLE]


def evaluate(command: str, cwd: Path, output: Path, *more: str, **env: str) -> list[float]:
    """log p of each new object, by a printed command run in a folder; where its output goes is added to it."""
    program, *words = shlex.split(command)
    assert program == "lm_eval"
    words = ["-m", "lm_eval", *words, "--log_samples", "--output_path", str(output), *more]
    done = python(*words, path=ROOT, cwd=cwd, LM_EVAL_EDIT_AUTOLOAD="1", **env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    return target_log_probability(output)
