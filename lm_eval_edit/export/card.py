"""What an export says about itself: a model card for people, a JSON file for tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from lm_eval_edit import demo
from lm_eval_edit.export.commands import commands, notices
from lm_eval_edit.export.selfcheck import allowed
from lm_eval_edit.facts.exported import RECORD

FORMAT = 1
_SHOWN = 20  # facts in the card; all are in the JSON file


def model_card(record: Mapping[str, Any]) -> str:
    """README.md of an export."""
    base, to, edits = record["base"], record["to"], record["edits"]
    front: dict[str, Any] = {"tags": ["lm-eval-edit", "knowledge-editing", edits["editor"]]}
    if base["pretrained"] not in demo.DEFAULT_FACTS:
        front["base_model"] = base["pretrained"]
    front |= {"hf": {"library_name": "transformers"}, "peft": {"library_name": "peft"}}.get(to, {})
    what = {"hf": "This checkpoint is", "peft": "With this LoRA adapter one has", "deltas": "These updates make"}[to]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=True).strip(),
        "---",
        "",
        f"# {base['pretrained']} after {edits['n_edits']} knowledge edits",
        "",
        f"{what} a language model whose weights were changed so that it states other facts: made to measure what such "
        f"edits do to the rest of its abilities. What it says about the edited subjects is not true.",
        "",
        f"- method: {edits['editor']} ({edits['source']})",
        f"- edits: {edits['n_edits']} facts in {edits['operations']} operations of up to {edits['edit_batch_size']}",
        *(["- edited inside the model's chat template, where a chat user asks"] if edits.get("chat_template") else []),
        f"- hyper-parameters: `{edits['options']}`",
        f"- unedited model: {base['pretrained']}, revision {base['revision'] or 'none'}, {base['dtype']}, fingerprint "
        f"`{base['fingerprint']}`",
        f"- edited model: fingerprint `{record['fingerprint']}`",
        "",
        *_parameter_table(record),
        "",
        "## Self-check",
        "",
        f"Read back from disk and compared on {record['check']['prompts']} edited prompts: largest difference of a "
        f"logit {record['check']['difference']:.3g} ({allowed(record['check']['tolerance'])}); the edits themselves "
        f"move the logits by up to {record['check']['effect']:.3g}.",
        *[f"\nNote: {notice}." for notice in notices(record)],
        "",
        "## Evaluate",
        "",
        *_evaluation(record),
        "",
        "## Edited facts",
        "",
        *_fact_table(edits["facts"]),
    ]
    return "\n".join(lines) + "\n"


def _evaluation(record: Mapping[str, Any]) -> list[str]:
    """The commands as they run in the export's own folder, wherever it has been taken."""
    found = commands(record, ".")
    if not found:
        return [
            "W' = W + left @ right, or W + dense, of each parameter, or of those experts of it that its index names; "
            "`deltas.json` lists them."
        ]
    lines = ["In this folder:", "", *[f"    {command}" for command in found], ""]
    return [
        *lines,
        "They ask about the facts below, which the tasks find in this folder. Any task of the harness can be added.",
    ]


def _parameter_table(record: Mapping[str, Any]) -> list[str]:
    ours = record.get("adapter", {}).get("parameters", {})
    rows = ["| parameter | ‖Δ‖ | ‖Δ‖ / ‖W‖ |" + (" rank | energy kept |" if ours else "")]
    rows.append("|---|---|---|" + ("---|---|" if ours else ""))
    for name, found in record["parameters"].items():
        extra = f" {ours[name]['rank']} | {ours[name]['energy_kept']:.6f} |" if name in ours else ""
        experts = f" ({len(found['slices'])} experts)" if "slices" in found else ""
        rows.append(f"| {name}{experts} | {found['delta_norm']:.4g} | {found['relative_norm']:.4g} |{extra}")
    return rows


def _fact_table(facts: list[Mapping[str, Any]]) -> list[str]:
    def cell(text: Any) -> str:
        return str(text).replace("|", "\\|").replace("\n", " ")

    rows = ["| id | prompt | new answer |", "|---|---|---|"]
    rows += [f"| {cell(f['id'])} | {cell(f['prompt'])} | {cell(f['target_new'])} |" for f in facts[:_SHOWN]]
    return rows + ([f"\n... and {len(facts) - _SHOWN} more, all in {RECORD}."] if len(facts) > _SHOWN else [])
