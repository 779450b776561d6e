"""One vLLM engine for a whole sweep against the same sweep in the process that edits, cell beside cell.

    python benchmarks/served.py --device cuda --output results/served     # SmolLM2 and a random LLaMA of 7B shape
    python benchmarks/served.py --device cuda --model llama-7b --engine_args gpu_memory_utilization=0.8
    python benchmarks/served.py --device cpu --tiny --engine_args enforce_eager=True gpu_memory_utilization=0.1

ROME and R-ROME at four checkpoints each: eight adapters of one engine, the unedited model, and the base of both ways.
Both sweeps run as the console command, one after the other, start-up included. Printed for each model: what either way
took, what a cell's evaluation took, how far the log-probabilities of a cell are apart, how much the edits move them,
and how many generated answers are the same. Random models stand for the time and memory of their shape alone.

On a CPU, vLLM wants the environment that docs/engines.md names. A model that fails costs itself alone; the exit status
is then 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, PretrainedConfig, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import gpu, gpu_models  # noqa: E402
from lm_eval_edit import demo  # noqa: E402
from lm_eval_edit._support.files import write_bytes, write_json  # noqa: E402

CHECKPOINTS = (1, 2, 4, 8)
TASKS = ("edithurt_suite", "edithurt_suite_mc")
LLAMA, SMOLLM2 = "llama-7b", demo.REAL
# vLLM's attention on a CPU refuses heads narrower than 32.
TINY = LlamaConfig(
    hidden_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, intermediate_size=192,
    vocab_size=2000, max_position_embeddings=1024, bos_token_id=0, eos_token_id=0, initializer_range=0.1,
)  # fmt: skip
# E[k kᵀ] of a random model says nothing; a row's edits are what both ways evaluate, whichever they are.
ROME = {"mom2_adjustment": False, "v_num_grad_steps": 20, "v_lr": 0.5, "context_template_length_params": []}


def tokenizer_of(config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The demo's, with a word for every row of the model's embeddings: what an engine picks can always be written."""
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    tokenizer.add_tokens([f" v{i}" for i in range(config.vocab_size - len(tokenizer))])
    if len(tokenizer) != config.vocab_size:
        raise ValueError(f"the vocabulary of {config.vocab_size} is smaller than the demo's of {len(tokenizer)}")
    return tokenizer


def make_model(config: PretrainedConfig, dtype: torch.dtype, device: str, folder: Path) -> Path:
    """A random model of a shape, saved with its tokenizer."""
    config.bos_token_id = config.eos_token_id = (tokenizer := tokenizer_of(config)).eos_token_id
    model = gpu_models.make_model(config, dtype, device)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def design(pretrained: str, dtype: str, layer: int, limit: int, batch_size: int) -> dict[str, Any]:
    """The sweep, as its YAML file has it."""
    return {
        "models": [{"pretrained": pretrained, "label": "model"}],
        "editors": [{"editor": name, "label": name, **ROME} for name in ("rome", "r_rome")],
        "datasets": ["demo"],
        "n_edits": [0, *CHECKPOINTS],
        "tasks": list(TASKS),
        "model_args": {"layers": [layer], "dtype": dtype, "data_dir": str(demo.DATA)},
        "limit": limit,
        "batch_size": batch_size,
    }


def sweep(file: Path, out: Path, device: str, *flags: str) -> float:
    """Wall seconds of the console command.

    Raises:
        RuntimeError: With the end of what it printed, where it failed.
    """
    command = [
        str(Path(sys.executable).parent / "lm-eval-edit"),
        "sweep",
        str(file),
        "-o",
        str(out),
        "--device",
        device,
    ]
    started = time.perf_counter()
    done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, [*command, *flags]))} ended with {done.returncode}:\n{done.stdout[-2000:]}"
        )
    return time.perf_counter() - started


def answers(folder: Path) -> dict[tuple[str, int], list[Any]]:
    """(task, document) -> the answers of a cell to its requests."""
    found = {}
    for file in sorted(folder.glob("samples_*.jsonl")):
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            found[file.name.removeprefix("samples_").partition("_20")[0], line["doc_id"]] = line["resps"]
    return found


def flat(of: Mapping[tuple[str, int], list[Any]]) -> tuple[list[float], list[str]]:
    """The log-probabilities among the answers of a cell, and its texts."""
    numbers: list[float] = []
    texts: list[str] = []
    for request in (request for key in sorted(of) for request in of[key]):
        for said in request:
            texts.append(said) if isinstance(said, str) else numbers.append(float(said[0]))
    return numbers, texts


def compared(local: Path, served: Path) -> list[dict[str, Any]]:
    """One record a cell that both ways have: seconds, and how far the answers are apart."""
    records = []
    base = flat(answers(local / "model/unedited"))[0]
    for file in sorted(served.glob("model/**/cell.json")):
        cell = file.parent.relative_to(served)
        told = json.loads(file.read_text(encoding="utf-8"))
        here = json.loads((local / cell / "cell.json").read_text(encoding="utf-8"))
        (ours, our_texts), (theirs, their_texts) = flat(answers(local / cell)), flat(answers(file.parent))
        records.append({
            "cell": cell.as_posix(),
            "served": told["engine"].get("served", "unedited"),
            "seconds": told["seconds"]["evaluate"],
            "seconds_in_process": here["seconds"]["evaluate"],
            "apart": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
            "effect": max(abs(a - b) for a, b in zip(ours, base, strict=True)),
            "same_texts": sum(a == b for a, b in zip(our_texts, their_texts, strict=True)),
            "texts": len(our_texts),
        })  # fmt: skip
    return records


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sweeps of one model."""
    # vLLM's adapters on a GPU are for half precision.
    dtype = args.dtype or ("float32" if torch.device(args.device).type == "cpu" else "bfloat16")
    pretrained, layer = name, 5
    if name != SMOLLM2:
        config = TINY if args.tiny else gpu_models.CONFIGS[name]
        pretrained, layer = str(make_model(config, getattr(torch, dtype), args.device, folder / "weights")), 2
        if torch.device(args.device).type == "cuda":
            torch.cuda.empty_cache()
    file = folder / "design.yaml"
    file.write_text(yaml.safe_dump(design(pretrained, dtype, layer, args.limit, args.batch_size)), encoding="utf-8")
    engine = ["--engine", "vllm", *(["--engine_args", *args.engine_args] if args.engine_args else [])]
    found: dict[str, Any] = {"model": name if not args.tiny else f"{name} (tiny)", "dtype": dtype}
    found["seconds_in_process"] = sweep(file, folder / "local", args.device)
    found["seconds"] = sweep(file, folder / "served", args.device, *engine)
    return found | {"cells": compared(folder / "local", folder / "served")}


def report(about: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    """Everything as Markdown."""
    used = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['device']}, {about['date']}; {used}", "",
        "| model | dtype | cells | s, in process | s, vLLM | s a cell, in process | s a cell, vLLM "
        "| log-probabilities apart | the edits' effect | same texts |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for found in (each for each in models if "failed" not in each):
        cells = found["cells"]
        median = [statistics.median(cell[key] for cell in cells) for key in ("seconds_in_process", "seconds")]
        edited = [cell["effect"] for cell in cells if cell["effect"]]
        lines.append(
            f"| {found['model']} | {found['dtype']} | {len(cells)} | {found['seconds_in_process']:.0f} | "
            f"{found['seconds']:.0f} | {median[0]:.1f} | {median[1]:.1f} | {max(c['apart'] for c in cells):.1e} | "
            f"{min(edited, default=0.0):.1e} to {max(edited, default=0.0):.1e} | "
            f"{sum(c['same_texts'] for c in cells)} of {sum(c['texts'] for c in cells)} |"
        )
    failed = [each for each in models if "failed" in each]
    lines += ["", "Failed:", *(f"- {each['model']}: {each['failed']}" for each in failed)] if failed else []
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--model", nargs="+", choices=(SMOLLM2, LLAMA), default=[SMOLLM2, LLAMA], help="which of the two"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny LLaMA in their place: does it run")
    parser.add_argument("--dtype", help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--limit", type=int, default=10, help="documents of a task")
    parser.add_argument("--batch_size", type=int, default=16, help="of the sweep in the process that edits")
    parser.add_argument("--engine_args", nargs="+", metavar="NAME=VALUE", help="for vLLM, as `sweep` takes them")
    parser.add_argument("--output", type=Path, help="a folder for served.json and served.md")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("vllm") is None:
        parser.error("vLLM is not installed; `make test-vllm` makes an environment with its build for CPUs")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees none here; --device cpu --tiny runs anywhere")
    models: list[dict[str, Any]] = []
    for name in [LLAMA] if args.tiny else args.model:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                models.append(measure(name, args, Path(scratch)))
            except (RuntimeError, ValueError, OSError) as error:  # the next model may do
                models.append({"model": name, "failed": str(error)})
        print(json.dumps(models[-1]), flush=True)
    about = gpu.header(args.device, args.tiny)
    text = report(about, models)
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_json(args.output / "served.json", about | {"models": models})
        write_bytes(args.output / "served.md", f"{text}\n".encode())
    return int(any("failed" in each for each in models))


if __name__ == "__main__":
    sys.exit(main())
