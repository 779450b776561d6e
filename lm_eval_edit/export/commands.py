"""How an export is evaluated in other engines: commands that run as they are printed, and what to know before."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_edit import demo

#: The values vLLM takes for `max_lora_rank` (vllm/config/lora.py, see docs/engines.md).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: Architectures that vLLM runs and has no LoRA for (its table of supported models, November 2026).
VLLM_WITHOUT_LORA = ("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM")

#: Its kernels for GPUs refuse others (vllm/lora/ops/triton_ops); those for CPUs take float32.
GPU_LORA = "vLLM's LoRA on a GPU is for float16 and bfloat16"

# What the harness's `name=value,name=value` takes without reading it as something else.
_PLAIN = re.compile(r"[\w./+@:-]+")


def vllm_rank(rank: int) -> int | None:
    """The least `max_lora_rank` with which vLLM takes an adapter of this rank; None if there is none."""
    return next((choice for choice in VLLM_RANKS if choice >= rank), None)


def model_args(values: Mapping[str, Any]) -> str:
    """Arguments as a shell hands them to `--model_args`: `name=value,...`, or JSON where a value needs it."""
    if all(not isinstance(value, list) and _PLAIN.fullmatch(str(value)) for value in values.values()):
        return ",".join(f"{name}={value}" for name, value in values.items())
    return shlex.quote(json.dumps(dict(values), ensure_ascii=False))


def commands(record: Mapping[str, Any], folder: str) -> list[str]:
    """How to evaluate an export in other engines, one command each; none for plain deltas.

    Each names the dtype that the model was edited in: an engine's own default is bfloat16 for many models, which moves
    log-probabilities by more than an edit may.

    Args:
        record: What the export says of itself.
        folder: Where it lies.
    """
    base, to = record["base"], record["to"]
    if to == "hf":
        given = {"pretrained": folder, "dtype": base["dtype"]}
        return [_command(engine, given, record) for engine in ("hf", "vllm")]
    if to != "peft":
        return []
    common = {"pretrained": demo.loadable(base["pretrained"])}
    common |= {"revision": base["revision"]} if base["revision"] else {}
    common |= {"gguf_file": base["gguf_file"]} if base.get("gguf_file") else {}
    common |= {"dtype": base["dtype"]}
    found = [_command("hf", common | {"peft": folder}, record)]
    if _why_not_in_vllm(record) is None:
        lora: dict[str, Any] = {"lora_local_path": folder, "max_lora_rank": vllm_rank(record["adapter"]["rank"])}
        # vLLM wraps every linear map it could adapt, the head included; the edited ones are named, and no others.
        lora["lora_target_modules"] = _edited_modules(record)
        found.append(_command("vllm", common | lora, record))
    return found


def _command(engine: str, given: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    tasks, data = _tasks(record["edits"]["facts"]), ""
    if record["base"]["pretrained"] == demo.NAME:  # the suite's data come with the package; other models' from the hub
        tasks, data = ["edithurt_suite", *tasks], " --metadata data_dir=demo"
    if record["edits"].get("chat_template"):  # the facts are there where they were edited
        data += " --apply_chat_template"
    return f"lm_eval --model {engine} --model_args {model_args(given)} --tasks {','.join(tasks)}{data}"


def _tasks(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tasks that have something to ask about these facts, which the export carries."""
    needs = {"edithurt_efficacy": "prompt", "edithurt_generalization": "paraphrases", "edithurt_locality": "locality"}
    found = [task for task, field in needs.items() if any(fact.get(field) for fact in facts)]
    return ["edithurt_editing"] if len(found) == len(needs) else found


def _edited_modules(record: Mapping[str, Any]) -> list[str]:
    paths = (name.rpartition(".")[0] for name in record["adapter"]["parameters"])
    return sorted({path.rpartition(".")[2] for path in paths})


def _why_not_in_vllm(record: Mapping[str, Any]) -> str | None:
    """Why vLLM does not take this adapter, as a sentence; None where it does, as far as is known."""
    rank, architecture = record["adapter"]["rank"], record["base"].get("architecture")
    if architecture in VLLM_WITHOUT_LORA:
        return f"{no_lora(architecture)}: it does not take this adapter. Export with to=hf for it"
    if record["base"].get("gguf_file"):
        return "the unedited model is a GGUF file, which vLLM reads in its own way. Export with to=hf for it"
    if vllm_rank(rank) is None:
        return (
            f"{why_no_rank(rank)}: vLLM does not take this adapter. Export with "
            f"to=hf for it, or a shorter prefix with n_edits, or with rank={VLLM_RANKS[-1]} for an approximation"
        )
    return None


def no_lora(architecture: str) -> str:
    """Why vLLM takes no adapter of a model that is among `VLLM_WITHOUT_LORA`."""
    return f"vLLM has no LoRA for {architecture}"


def why_no_rank(rank: int) -> str:
    """Why vLLM takes no adapter of a rank that `vllm_rank` has no answer for."""
    return f"rank {rank} is above vLLM's limit of {VLLM_RANKS[-1]}"


def notices(record: Mapping[str, Any]) -> list[str]:
    """What a user of an adapter should know, as sentences; empty for the other forms."""
    if record["to"] != "peft":
        return []
    adapter, why = record["adapter"], _why_not_in_vllm(record)
    served = why is None
    if why is None:
        why = f"vLLM must be started with max_lora_rank={vllm_rank(adapter['rank'])}"
        if "architecture" not in record["base"]:  # an export of release 0.1
            why += f". It has no LoRA for {', '.join(VLLM_WITHOUT_LORA)}: export with to=hf for these"
    out = [why]
    if served and record["base"]["dtype"] == "float32":
        out.append(f"{GPU_LORA}: for this model, which is float32, export with to=hf there")
    if not adapter["exact"]:
        least = min(adapter["parameters"].items(), key=lambda entry: entry[1]["energy_kept"])
        out.append(
            f"an approximation: at least {least[1]['energy_kept']:.2%} of ‖Δ‖² is kept ({least[0]} keeps least); on "
            f"the edited prompts its logits differ from the edited model's by up to {adapter['logit_error']:.3g}"
        )
    return out
