"""What a sweep asks of vLLM, what is refused before any model loads, and which cell is served how.

An engine is given a model as the harness's own vLLM model type takes it. The tasks about a row's own facts ask for the
weights after every operation and for single tokens; they stay with the model of this process, while it is edited.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lm_eval_edit import demo
from lm_eval_edit.errors import UserError, in_one_error
from lm_eval_edit.export.commands import GPU_LORA, VLLM_WITHOUT_LORA, no_lora
from lm_eval_edit.harness import served
from lm_eval_edit.harness.engines import VLLM, Engine
from lm_eval_edit.models.dtypes import dtype_name, dtype_of
from lm_eval_edit.sweep.checking import Checked
from lm_eval_edit.sweep.design import Model
from lm_eval_edit.sweep.evaluation import Evaluation
from lm_eval_edit.sweep.prepared import BASE, Prepared
from lm_eval_edit.sweep.preparing import log_probabilities

#: Options of a model that the harness's vLLM model type takes under the same name.
_PASSED = (
    "revision", "trust_remote_code", "tokenizer", "add_bos_token", "prefix_token_id", "max_length", "enable_thinking",
    "chat_template_args", "think_end_token",
)  # fmt: skip
#: Options of where and how transformers loads the model that is edited; no figure depends on them.
_OF_LOADING = (
    "dtype", "torch_dtype", "backend", "device", "batch_size", "max_batch_size", "parallelize", "max_memory_per_gpu",
    "max_cpu_memory", "max_memory", "offload_folder", "offload_buffers", "device_map", "low_cpu_mem_usage",
    "attn_implementation", "logits_cache", "use_safetensors", "local_files_only", "force_download", "cache_dir",
    "proxies", "token",
    "use_fast_tokenizer", "experts_implementation", "use_kernels", "weights_only",
)  # fmt: skip
#: Arguments of the engine that the design or the edits decide -> who says them.
_DECIDED = {
    **dict.fromkeys(("pretrained", "model", "revision", "tokenizer", "trust_remote_code", "dtype", "max_length"),
                    "the design says it (models, model_args)"),
    **dict.fromkeys(("enable_lora", "lora_local_path", "max_lora_rank", "max_loras", "lora_target_modules",
                     "lora_dtype", "lora_modules"), "the edits decide it"),
    **dict.fromkeys(("quantization", "load_format"), "the served weights are those that were edited, as they are"),
    "batch_size": "vLLM makes its own batches",
    "device": "CUDA_VISIBLE_DEVICES says which GPUs vLLM takes",
}  # fmt: skip
#: Arguments of the engine over whose product of GPUs it splits the model.
_SPLITS = ("tensor_parallel_size", "pipeline_parallel_size")
_DTYPES = ("float32", "float16", "bfloat16")

#: Largest difference of a log-probability that is an engine's own arithmetic; smaller effects of edits are not judged.
_NOISE = {"float32": 0.01, "float16": 0.2, "bfloat16": 1.0}


@dataclass(frozen=True)
class Serving:
    """How a sweep is served.

    Attributes:
        arguments: Of the engine.
        device: As `--device`: where edits are made.
        version: Of vLLM.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    version: str | None = None

    def record(self, each: Prepared) -> dict[str, Any]:
        """What a cell says of its engine, and which of its tasks the model of this process has answered."""
        found = Engine(VLLM, self.version, each.dtype).record() | {"served": each.kind}
        found |= {"adapter_rank": each.record["rank"]} if "rank" in each.record else {}
        found |= {"arguments": dict(self.arguments)} if self.arguments else {}
        apart = ((each.record.get("evaluated") or {}).get("results") or {}).get("configs") or {}
        return found | ({"in_process": list(apart)} if apart else {})


def check_arguments(arguments: Mapping[str, Any]) -> str:
    """Check what can be known before the design is: that there is a vLLM, and that it takes these arguments.

    Returns:
        Its version.

    Raises:
        UserError: with every problem.
    """
    version = served.vllm_version()
    problems = [f"--engine_args {name}: {_DECIDED[name]}; leave it out" for name in arguments if name in _DECIDED]
    for name in (*_SPLITS, "data_parallel_size"):
        value = arguments.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            said = f"--engine_args {name}={value}" if name == "pipeline_parallel_size" else f"--{name} {value}"
            problems.append(f"{said}: want a whole number of at least 1")
        elif name == "data_parallel_size" and value > 1 and not served.has_ray():
            problems.append(f"--{name} {value}: the harness spreads vLLM's replicas with Ray, which is not installed")
    problems += served.engine_argument_problems({n: v for n, v in arguments.items() if n not in _DECIDED})
    if problems:
        raise in_one_error(problems)
    return version


def gpus_of(arguments: Mapping[str, Any]) -> int:
    """Over how many GPUs an engine splits the model; what is no number is told by `check_arguments`."""
    sizes = [arguments.get(name, 1) for name in _SPLITS]
    return math.prod(size for size in sizes if isinstance(size, int))


def check_for_actors(arguments: Mapping[str, Any], gpus: float | None) -> None:
    """Check what an engine in an actor of Ray cannot have.

    Args:
        gpus: As `--gpus_per_task`.

    Raises:
        UserError: replicas of its own; a part of a GPU.
    """
    problems = []
    if arguments.get("data_parallel_size", 1) != 1:
        problems.append(
            f"--data_parallel_size {arguments['data_parallel_size']} with --engine ray: every node has an engine of "
            "its own, and the cells are shared out among them; leave it out"
        )
    if gpus and gpus != int(gpus):
        problems.append(
            f"--gpus_per_task {gpus:g} with --serve vllm: an engine has its GPUs to itself; give a whole number"
        )
    if problems:
        raise in_one_error(problems)


def actor_lines(arguments: Mapping[str, Any], on_gpu: bool | None) -> list[str]:
    """What a dry run says of engines in actors of Ray, which is not asked for its nodes.

    Args:
        on_gpu: Whether an actor has GPUs; None where that is for the cluster to say.
    """
    gpus = gpus_of(arguments)
    lines = [
        "with Ray: rows are edited as its tasks; then each node that has room for it starts one engine of the model, "
        "in an actor with its GPUs to itself, and cells go to the engine that is free"
    ]
    if gpus != 1 and on_gpu is not False:
        given = ", ".join(f"{name}={arguments[name]}" for name in _SPLITS if name in arguments)
        lines.append(f"an actor has at least {gpus} GPUs of one node ({given})")
    if on_gpu is None:
        lines.append(
            "whether the nodes have GPUs is asked when it runs; below, they are as this machine is (a float32 model "
            "takes no adapters on a GPU). --gpus_per_task says it now"
        )
    return lines


def problems(checked: Checked, how: Serving) -> list[str]:
    """Why a design cannot be served, as sentences."""
    found = []
    if not checked.general:
        found.append(
            f"--engine vllm: the tasks ({', '.join(checked.about_schedule)}) are all about the rows' own facts, which "
            f"the model of this process answers while it is edited: leave --engine out"
        )
    for model in checked.design.models:
        options = _options(checked, model)
        if options.get("gguf_file"):
            found.append(
                f"--engine vllm: {model.label}: gguf_file: vLLM reads GGUF files in its own way, and would serve other "
                f"weights than those that are edited. Give a folder of transformers' own form, or leave --engine out"
            )
        strange = [name for name in options if name not in (*_PASSED, *_OF_LOADING, "gguf_file")]
        found += [
            f"--engine vllm: {model.label}: {name}={options[name]} is an option of transformers that vLLM has nothing "
            f"like; leave it out, or leave --engine out"
            for name in strange
        ]
        if options.get("max_length") is not None and how.arguments.get("max_model_len") is not None:
            found.append("max_length in the design and max_model_len in --engine_args say the same; give one of them")
        dtype = served_dtype(checked, model)
        if dtype is not None and dtype not in _DTYPES:
            found.append(f"--engine vllm: {model.label}: dtype {dtype}: vLLM takes {', '.join(_DTYPES)}")
    return found


def _options(checked: Checked, model: Model) -> dict[str, Any]:
    """The options of loading a model, without hyper-parameters; empty in a dry run without its configuration."""
    plans = (
        schedule.plan
        for (label, _), schedules in checked.schedules.items()
        if label == model.label
        for schedule in schedules
    )
    plan = next((plan for plan in plans if plan is not None), None)
    return {} if plan is None else {name: value for name, value in plan.model_options.items() if value is not None}


def served_dtype(checked: Checked, model: Model) -> str | None:
    """The dtype a model is edited and served in; None where its configuration is not known."""
    config = checked.configs.get(model.label)
    if config is None:
        return None
    options = _options(checked, model)
    try:
        return dtype_name(dtype_of(config, options.get("dtype") or options.get("torch_dtype")))
    except UserError:
        return None  # told with the design's other problems


def pretrained(checked: Checked, model: Model) -> str:
    """The folder or hub id of an unedited model."""
    return str(demo.loadable(model.pretrained))


def model_options(checked: Checked, model: Model, at_home: str) -> dict[str, Any]:
    """The options of a model for the harness's vLLM model type.

    Args:
        at_home: What is served; an exported checkpoint has its tokenizer beside it, and no revision.
    """
    found = {name: value for name, value in _options(checked, model).items() if name in _PASSED}
    if at_home != pretrained(checked, model):
        found = {name: value for name, value in found.items() if name not in ("revision", "tokenizer")}
    return found


def no_adapters(checked: Checked, model: Model, on_gpu: bool | None = None) -> str | None:
    """Why vLLM takes no adapter of a model, whatever its edits; None where it does, as far as is known.

    Args:
        on_gpu: Whether the engine has a GPU; None where it runs on this machine and takes what is there.
    """
    config = checked.configs.get(model.label)
    for architecture in getattr(config, "architectures", None) or ():
        if architecture in VLLM_WITHOUT_LORA:
            return no_lora(architecture)
    if served_dtype(checked, model) == "float32" and (torch.cuda.is_available() if on_gpu is None else on_gpu):
        return GPU_LORA
    return None


# ------------------------------------------------------------------------------------------------------------- answers


def check_answers(lm: Any, each: Prepared) -> dict[str, Any]:
    """Ask a served model what the edited model of this process was asked: engines have been known to ignore adapters.

    Returns:
        How many prompts; the largest difference of a log-probability to the model that was edited, and the edits'
        largest effect on one.

    Raises:
        UserError: it answers like the unedited model.
    """
    probes = each.record["probes"]
    found = log_probabilities(lm, [(prompt, target) for prompt, target, *_ in probes])
    off = [abs(f - wanted) for f, (_, _, wanted, _) in zip(found, probes, strict=True)]
    record: dict[str, Any] = {"prompts": len(probes), "difference": max(off, default=0.0)}
    known = [(f, wanted, was) for f, (_, _, wanted, was) in zip(found, probes, strict=True) if was is not None]
    if each.kind == BASE or not known:
        return record
    effect = max(abs(wanted - was) for _, wanted, was in known)
    to_edited = sum((f - wanted) ** 2 for f, wanted, _ in known)
    to_unedited = sum((f - was) ** 2 for f, _, was in known)
    if effect > _NOISE.get(each.dtype, 1.0) and not to_edited < to_unedited:
        raise UserError(
            f"the served model answers like the unedited one, as if the {each.kind} were ignored: on {len(known)} "
            f"edited prompts its log-probabilities differ by up to {record['difference']:.3g} from those of the model "
            f"that was edited, which the edits moved by up to {effect:.3g}"
        )
    return record | {"effect": effect}


#: What a results file of the harness holds by task or group.
_BY_TASK = (
    "results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples",
    "task_hashes",
)  # fmt: skip


def joined(served_part: Evaluation, other: Mapping[str, Any] | None) -> Evaluation:
    """An evaluation by the engine, and what the model of this process has answered of the same cell, as one.

    Args:
        other: `results`, `samples` and `failed`, as a waiting cell keeps them.
    """
    if not other:
        return served_part
    failed = {**served_part.failed, **other["failed"]}
    if served_part.results is None or other["results"] is None:
        results = served_part.results or other["results"]
    else:
        results = dict(served_part.results)
        for key in _BY_TASK:
            if key in results or key in other["results"]:
                results[key] = {**results.get(key, {}), **other["results"].get(key, {})}
    return Evaluation(results, {**served_part.samples, **other["samples"]}, failed)
