"""The tables of docs/scaling.md: what figures 3 to 8 and a 70B model cost, by `lm_eval_edit.cost.run`.

    python examples/scaling_tables.py          # writes them into docs/scaling.md
    python examples/scaling_tables.py --check  # exit status 1 if the file is not what would be written

Estimates, not measurements. Models are built from their published shapes without weights; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from lm_eval_edit.cost.run import CHARACTERS_PER_TOKEN, Cost, estimate, evaluation, known_tasks
from lm_eval_edit.cost.work import DEVICES, Device, Shape
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import presets, resolve
from lm_eval_edit.sweep.costs import row_operations, sweep_cost
from lm_eval_edit.sweep.design import Design
from lm_eval_edit.sweep.parsing import parse_design, preset_names, read_design

FILE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- {}: written by examples/scaling_tables.py -->", "<!-- end of {} -->"
MOMENT_TOKENS = 1_000_000
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "llama-7b": LlamaConfig(),
    "llama-2-70b": LlamaConfig(
        hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, max_position_embeddings=4096,
    ),
}  # fmt: skip
SEVENTY = {
    "models": [{"pretrained": "meta-llama/Llama-2-70b-hf", "label": "llama-2-70b"}],
    "tasks": ["edithurt_suite"],
}


def panels() -> list[str]:
    """The presets for the panels of the paper's figures."""
    return [name for name in preset_names() if read_design(name, {}).figure]


@functools.cache
def shape(model: str) -> Shape:
    """The shape of a model of `CONFIGS`."""
    return Shape.of(CONFIGS[model])


def options(editor: str, model: str) -> Mapping[str, Any]:
    """An editor's hyper-parameters for a model: its preset, and the defaults."""
    if editor == "mend":  # which will not be set up without a trained archive; the preset says which weights it edits
        return next((p.options for p in presets("mend") if p.fits(CONFIGS[model])), {})
    found, problems = resolve(find_editor(editor), CONFIGS[model], {})
    if found is None:
        raise ValueError(problems)
    return found.editor.describe()


def cost(design: Design, device: Device, characters: float = CHARACTERS_PER_TOKEN, weight_bytes: int = 2) -> Cost:
    """Of a design, second moments included where they are needed."""
    found, unknown = sweep_cost(
        design, lambda model, routed: shape(model.label), lambda row: options(row.method.editor, row.model.label),
        device=device, weight_bytes_of=lambda model: weight_bytes, second_moment_tokens=MOMENT_TOKENS,
        characters_per_token=characters,
    )  # fmt: skip
    if unknown:
        raise ValueError(f"{design.name}: no size of {unknown}")
    return found


def number(value: float) -> str:
    """Three digits: 1,340 / 0.0123 / 4.1e17."""
    if value >= 1e9:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """As Markdown, the first column to the left."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def models() -> str:
    """One evaluation of the suite on each model."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name in CONFIGS:
            tasks, _ = known_tasks(["edithurt_suite"])
            prompts, tokens, work = evaluation(shape(name), tasks, batch_size=32)
            common = {"tasks": tasks, "evaluations": 1, "loads": 0, "batch_size": 32}
            hours = [estimate(shape(name), device=device, **common) for device in DEVICES.values()]
            yield (
                name, f"{shape(name).parameters:,}", f"{2 * shape(name).parameters / 1e9:.1f}", number(prompts),
                f"{tokens / 1e6:.2f}", number(work.flop),
                *(f"{c.seconds / 60:.1f}" for c in hours), *(f"{c.gpus}" for c in hours[:1]),
            )  # fmt: skip

    devices = [f"minutes, {device.name}" for device in DEVICES.values()]
    head = ("model", "parameters", "GB in bfloat16", "prompts", "tokens, 10⁶", "FLOP", *devices, "GPUs")
    return table(head, rows())


def figures() -> str:
    """The twelve panels, and all of them."""

    def rows() -> Iterator[tuple[str, ...]]:
        designs = [read_design(name, {}) for name in panels()]
        totals = {name: Cost() for name in DEVICES}
        operations = evaluations = 0
        for design in designs:
            found = {name: cost(design, device) for name, device in DEVICES.items()}
            counts = [row_operations(row) for row in design.rows()]
            cells = 1 + sum(len(row.checkpoints) for row in design.rows())
            totals = {name: totals[name] + found[name] for name in DEVICES}
            operations, evaluations = operations + sum(map(len, counts)), evaluations + cells
            yield line(f"`{design.name}`", cells, sum(map(len, counts)), sum(map(sum, counts)), found)
        edited = sum(sum(map(sum, map(row_operations, design.rows()))) for design in designs)
        yield line("all twelve", evaluations, operations, edited, totals)

    devices = [f"GPU-hours, {device.name}" for device in DEVICES.values()]
    counts = ("evaluations", "operations", "facts edited", "prompts", "tokens, 10⁶")
    return table(("panel", *counts, "FLOP", *devices), rows())


def line(name: str, cells: int, operations: int, facts: int, found: Mapping[str, Cost]) -> tuple[str, ...]:
    """One row of `figures`."""
    first = next(iter(found.values()))
    hours = (f"{c.gpu_hours:.2f}" for c in found.values())
    counts = (f"{count:,}" for count in (cells, operations, facts, first.prompts))
    return (name, *counts, f"{first.tokens / 1e6:.1f}", number(first.flop), *hours)


def seventy() -> str:
    """Two rows on a 70B model, taken apart."""
    designs = {
        "ROME, 0 to 10 edits in sequence": {"editors": ["rome"], "n_edits": [2, 4, 6, 8, 10]},
        "MEMIT, one batch of 1, 10, 100": {"editors": ["memit"], "n_edits": [1, 10, 100], "edit_batch_size": "all"},
    }

    def rows() -> Iterator[tuple[str, ...]]:
        for name, changes in designs.items():
            design = parse_design(SEVENTY | changes, "70b")
            for device in DEVICES.values():
                c = cost(design, device)
                parts = (f"{c.parts[part] / 3600:.2f}" for part in ("loading", "editing", "evaluating"))
                yield (name, device.name, str(c.gpus), f"{c.prompts:,}", number(c.flop), *parts, f"{c.gpu_hours:.1f}")

    parts = ("h loading", "h editing", "h evaluating")
    return table(("sweep", "device", "GPUs", "prompts", "FLOP", *parts, "GPU-hours"), rows())


def uncertainty() -> str:
    """All twelve panels under other assumptions."""
    base = DEVICES["h100"]
    others = {
        "as above": (base, 4.0, 32, 2),
        "half the utilisation": (dataclasses.replace(base, utilisation=base.utilisation / 2), 4.0, 32, 2),
        "launches twice as slow": (dataclasses.replace(base, seconds_per_block=2 * base.seconds_per_block), 4.0, 32, 2),
        "launches twice as fast": (dataclasses.replace(base, seconds_per_block=base.seconds_per_block / 2), 4.0, 32, 2),
        "3.2 characters per token": (base, 3.2, 32, 2),
        "float32 weights": (base, 4.0, 32, 4),
        "`batch_size=8`": (base, 4.0, 8, 2),
        "`batch_size=128`": (base, 4.0, 128, 2),
    }

    def rows() -> Iterator[tuple[str, ...]]:
        for name, (device, characters, batch, weight_bytes) in others.items():
            hours = dict.fromkeys(("gpt2-xl", "llama-7b"), 0.0)
            for preset in panels():
                design = read_design(preset, {"batch_size": batch})
                hours[design.models[0].label] += cost(design, device, characters, weight_bytes).gpu_hours
            yield (name, *(f"{value:.1f}" for value in hours.values()))

    return table(("assumption", "GPT-2 XL, GPU-hours", "LLaMA-7B, GPU-hours"), rows())


TABLES = {"models": models, "figures": figures, "assumptions": uncertainty, "70B": seventy}


def written(text: str) -> str:
    """The document with every table between its markers made anew."""
    for name, make in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    old = FILE.read_text(encoding="utf-8")
    new = written(old)
    if args.check:
        return int(old != new)
    FILE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
