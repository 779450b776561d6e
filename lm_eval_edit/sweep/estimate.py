"""What a sweep would cost, for `--dry_run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_edit.cost.run import Cost
from lm_eval_edit.cost.work import DEVICES, Device, Shape
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.errors import UserError
from lm_eval_edit.models.dtypes import dtype_name, dtype_of
from lm_eval_edit.sweep.checking import Checked, loading_args
from lm_eval_edit.sweep.costs import sweep_cost
from lm_eval_edit.sweep.design import Model, Row


def _published(pretrained: str) -> Any:
    """The configuration of the presets' models, where the hub cannot be asked; None for others."""
    from transformers import GPT2Config, LlamaConfig

    known = {
        "openai-community/gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),  # its checkpoint is float32
        "huggyllama/llama-7b": LlamaConfig(dtype="float16"),  # transformers' defaults are LLaMA-1 7B's sizes
        "meta-llama/Meta-Llama-3-8B-Instruct": LlamaConfig(
            vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, dtype="bfloat16"
        ),
    }
    return known.get(pretrained)


def estimate_lines(checked: Checked, devices: Sequence[Device] = (DEVICES["h100"],)) -> list[str]:
    """Prompts, tokens, FLOP and time of the whole design in a few lines; what cannot be estimated is said.

    Args:
        devices: One line for each says how long it would take there.
    """
    configs: dict[str, Any] = {}
    dtypes: dict[str, Any] = {}
    for model in checked.design.models:
        configs[model.label] = config = checked.configs[model.label] or _published(model.pretrained)
        if config is None:
            return [f"no estimate: the configuration of {model.pretrained} is not known here"]
        try:
            dtypes[model.label] = dtype_of(config, loading_args(checked.design, model).get("dtype"))
        except UserError as error:
            return [f"no estimate: {error}"]

    def shape_of(model: Model, routed: bool) -> Shape:
        return Shape.of(configs[model.label], routed)

    def options_of(row: Row) -> dict[str, Any]:
        given = {name: value for name, value in row.method.args.items() if name != "editor"}
        plan = checked.schedules[row.model.label, row.name][0].plan
        if plan is not None and plan.hyperparameters is not None:
            return plan.hyperparameters.editor.describe()
        found, _ = resolve(find_editor(row.method.editor), configs[row.model.label], given)
        return found.editor.describe() if found is not None else given

    def cost_on(device: Device) -> tuple[Cost, list[str]]:
        weight_bytes_of = {label: dtype.itemsize for label, dtype in dtypes.items()}
        return sweep_cost(
            checked.design,
            shape_of,
            options_of,
            rows=checked.rows,
            device=device,
            weight_bytes_of=lambda model: weight_bytes_of[model.label],
        )

    try:
        found = [(device, *cost_on(device)) for device in devices]
    except UserError as error:
        return [f"no estimate: {error}"]
    _, cost, unknown = found[0]
    names = ", ".join(dict.fromkeys(dtype_name(dtype) for dtype in dtypes.values()))
    lines = [
        f"estimate, nothing of it being there yet: {cost.prompts:,} prompts, {cost.tokens:.2g} tokens, "
        f"{cost.flop:.2g} FLOP, {cost.weight_bytes / 2**30:.2g} GiB of weights ({names})",
        *(_on(device, its) for device, its, _ in found),
    ]
    if unknown:
        lines.append(f"not in the estimate, their size is not known: {', '.join(unknown)}")
    return lines


def _on(device: Device, cost: Cost) -> str:
    parts = "".join(f", {part} {_time(seconds)}" for part, seconds in cost.parts.items())
    return f"on {device.name}: about {_time(cost.seconds)}{parts} (docs/scaling.md: how, and how far off it may be)"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
