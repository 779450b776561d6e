"""What an export says about itself: a model card for people, a JSON file for tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from lm_eval_edit import demo
from lm_eval_edit.export.adapter import vllm_rank
from lm_eval_edit.export.selfcheck import allowed

RECORD = "lm_eval_edit_export.json"
FORMAT = 1
_SHOWN = 20  # facts in the card; all are in the JSON file


def commands(record: Mapping[str, Any], folder: str) -> list[str]:
    """How to evaluate an export in other engines, one command each; none for plain deltas."""
    base, to = record["base"], record["to"]
    if to == "hf":
        return [f"lm_eval --model {engine} --model_args pretrained={folder} --tasks ..." for engine in ("hf", "vllm")]
    if to != "peft":
        return []
    common = f"pretrained={demo.loadable(base['pretrained'])}"
    if base["revision"]:
        common += f",revision={base['revision']}"
    limit = vllm_rank(record["adapter"]["rank"])
    found = [f"lm_eval --model hf --model_args {common},dtype={base['dtype']},peft={folder} --tasks ..."]
    if limit:
        vllm = f"{common},dtype={base['dtype']},lora_local_path={folder},max_lora_rank={limit}"
        found.append(f"lm_eval --model vllm --model_args {vllm} --tasks ...")
    return found


def notices(record: Mapping[str, Any]) -> list[str]:
    """What a user of an adapter should know, as sentences; empty for the other forms."""
    if record["to"] != "peft":
        return []
    adapter, out = record["adapter"], []
    limit = vllm_rank(adapter["rank"])
    if limit is None:
        out.append(
            f"rank {adapter['rank']} is above vLLM's limit of 512: vLLM does not take this adapter. Export with to=hf "
            f"for it, or a shorter prefix with n_edits, or with rank=512 for an approximation"
        )
    else:
        out.append(
            f"vLLM takes this adapter where it has LoRA for the model's architecture: for LLaMA, Mistral, Qwen and "
            f"most others, not for GPT-2, GPT-J or GPT-NeoX, which need to=hf. It must be started with "
            f"max_lora_rank={limit}"
        )
    if not adapter["exact"]:
        least = min(adapter["parameters"].items(), key=lambda entry: entry[1]["energy_kept"])
        out.append(
            f"an approximation: at least {least[1]['energy_kept']:.2%} of ‖Δ‖² is kept ({least[0]} keeps least); on "
            f"the edited prompts its logits differ from the edited model's by up to {adapter['logit_error']:.3g}"
        )
    return out


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
        *[f"    {command}" for command in commands(record, "DIR")],
        "    lm_eval --model edited_hf --model_args "
        f"pretrained={base['pretrained']},editor={edits['editor']},edit_ledger=LEDGER,n_edits={edits['n_edits']},"
        + ("edit_chat_template=true," if edits.get("chat_template") else "")
        + "...",
        "",
        "## Edited facts",
        "",
        *_fact_table(edits["facts"]),
    ]
    return "\n".join(lines) + "\n"


def _parameter_table(record: Mapping[str, Any]) -> list[str]:
    ours = record.get("adapter", {}).get("parameters", {})
    rows = ["| parameter | ‖Δ‖ | ‖Δ‖ / ‖W‖ |" + (" rank | energy kept |" if ours else "")]
    rows.append("|---|---|---|" + ("---|---|" if ours else ""))
    for name, found in record["parameters"].items():
        extra = f" {ours[name]['rank']} | {ours[name]['energy_kept']:.6f} |" if name in ours else ""
        rows.append(f"| {name} | {found['delta_norm']:.4g} | {found['relative_norm']:.4g} |{extra}")
    return rows


def _fact_table(facts: list[Mapping[str, Any]]) -> list[str]:
    def cell(text: Any) -> str:
        return str(text).replace("|", "\\|").replace("\n", " ")

    rows = ["| id | prompt | new answer |", "|---|---|---|"]
    rows += [f"| {cell(f['id'])} | {cell(f['prompt'])} | {cell(f['target_new'])} |" for f in facts[:_SHOWN]]
    return rows + ([f"\n... and {len(facts) - _SHOWN} more, all in {RECORD}."] if len(facts) > _SHOWN else [])
