"""What editing and evaluating cost on a GPU, at the shapes of GPT-2 XL and LLaMA-7B, in three precisions.

    python benchmarks/gpu.py --device cuda --output results/gpu   # all of it, in less than ten minutes
    python benchmarks/gpu.py --device cpu --tiny                  # the same code at tiny shapes, in seconds

For each model and dtype: seconds per edit of every method (its published preset, the first edit not counted), peak
memory, the share of the edit that the dtype's rounding loses, bit-exact restoring, and prompts per second of an
evaluation. Then the same edits on CPU and device, in float32 on small models, and how far their deltas are apart.
Models, second moments and archives are random and made in place; nothing is downloaded.

What the time budget or the memory did not allow is listed with its reason, in the JSON and in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import gpu_models  # noqa: E402
from benchmarks.gpu_runs import GIB, Bench, Clock, agreement, release  # noqa: E402
from lm_eval_edit._support.files import write_bytes, write_json  # noqa: E402
from lm_eval_edit._support.versions import versions  # noqa: E402
from lm_eval_edit.errors import in_one_line  # noqa: E402

DTYPES = ("bfloat16", "float16", "float32")


def header(device: str, tiny: bool) -> dict[str, Any]:
    """What the figures belong to."""
    on_gpu = torch.device(device).type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_gpu else None
    return {
        "device": properties.name if properties else platform.processor() or platform.machine(),
        "memory_gib": properties.total_memory / GIB if properties else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": versions() | {"python": platform.python_version()},
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "tiny": tiny,
    }


def cell(value: Any, digits: str = ".2f") -> str:
    """A figure, or a dash where it was not taken (memory on a CPU)."""
    return "–" if value is None else format(value, digits)


def report(about: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """Everything as Markdown: what was measured, then what was not and why."""
    memory = f", {about['memory_gib']:.0f} GiB" if about["memory_gib"] else ""
    used = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['device']}{memory}, {about['date']}; {used}"
        + (f", CUDA {about['cuda']}" if about["cuda"] else "")
        + ("; tiny shapes: its figures mean nothing" if about["tiny"] else ""),
    ]
    done = [r for r in records if "left_out" not in r and "failed" not in r]

    def section(what: str, head: Sequence[str], row: Any) -> None:
        found = [r for r in done if r["what"] == what]
        if found:
            lines.extend(["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"])
            lines.extend("| " + " | ".join(row(r)) + " |" for r in found)

    section(
        "edit",
        ("model", "dtype", "method", "s per edit", "s per fact", "s, first", "s, estimated", "peak GiB",
         "of them for the edit", "‖Δ‖/‖W‖", "rounding loss"),
        lambda r: (
            r["model"], r["dtype"], r["method"], cell(r["seconds"], ".3f"), cell(r["seconds"] / r["facts"], ".3f"),
            cell(r["first_seconds"]), cell(r["estimated_seconds"]), cell(r["peak_gib"]), cell(r["beside_gib"]),
            cell(r["relative_norm"], ".1e"), cell(r["rounding_loss"], ".1e"),
        ),
    )  # fmt: skip
    section(
        "evaluation",
        ("model", "dtype", "batch", "prompts/s", "tokens/s", "peak GiB"),
        lambda r: (
            r["model"], r["dtype"], str(r["batch_size"]), cell(r["prompts_per_second"], ".1f"),
            cell(r["tokens_per_second"], ",.0f"), cell(r["peak_gib"]),
        ),
    )  # fmt: skip
    section(
        "agreement",
        ("small model", "method", "relative difference of the deltas, CPU and device"),
        lambda r: (r["model"], r["method"], cell(r["relative_error"], ".1e")),
    )
    section("restored", ("model", "dtype", "restored"), lambda r: (r["model"], r["dtype"], "bit for bit"))
    for name, title in (("failed", "Failed"), ("left_out", "Not run")):
        found = [r for r in records if name in r]
        if found:
            lines.extend(["", f"{title}:"])
            words = ("model", "dtype", "what", "method")
            lines.extend(f"- {' '.join(str(r[w]) for w in words if w in r)}: {r[name]}" for r in found)
    return "\n".join(lines)


def measure(args: argparse.Namespace, folder: Path, records: list[dict[str, Any]]) -> None:
    """Take all measurements; each is printed, and added to `records`, as it comes."""
    clock = Clock(args.budget_s)
    configs = gpu_models.TINY if args.tiny else gpu_models.CONFIGS
    small = gpu_models.TINY if args.tiny else gpu_models.SMALL
    on_gpu = torch.device(args.device).type == "cuda"
    memory = torch.cuda.mem_get_info(args.device)[0] / GIB if on_gpu else None

    def keep(found: Iterable[dict[str, Any]]) -> None:
        for record in found:
            records.append(record)
            print(json.dumps(record), flush=True)

    parts = len(args.models) * (len(args.dtypes) + 1)
    for name in args.models:
        clock.share(parts)
        parts -= 1
        keep(agreement(name, small[name], args.device, folder, clock))
        bench = Bench(name, configs[name], args.device, clock, args.tiny, args.repeats, folder, memory)
        for dtype in args.dtypes:
            clock.share(parts)
            parts -= 1
            keep(bench.run(dtype, args.prompts))
        del bench  # its second moments are of this model alone
        release(args.device)


def write(output: Path | None, about: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """Print the table, and write it with the records into a folder where there is one."""
    text = report(about, records)
    print("\n" + text)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "gpu.json", about | {"records": list(records)})
        write_bytes(output / "gpu.md", (text + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print; the exit status is 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and few steps: does it run")
    parser.add_argument("--models", nargs="+", default=list(gpu_models.CONFIGS), choices=list(gpu_models.CONFIGS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds for everything (default: 540)")
    parser.add_argument("--repeats", type=int, default=3, help="edits timed with each method (default: 3)")
    parser.add_argument("--prompts", type=int, help="of the evaluation (default: 256, tiny: 8)")
    parser.add_argument("--output", type=Path, help="folder for gpu.json and gpu.md")
    args = parser.parse_args(argv)
    args.prompts = args.prompts or (8 if args.tiny else 256)
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device {args.device}: torch sees no CUDA device; --device cpu --tiny runs the same code anywhere"
        )
    if torch.device(args.device).type == "cpu" and not args.tiny:
        parser.error("--device cpu: the full shapes would take a CPU hours; add --tiny")
    about = header(args.device, args.tiny)
    records: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, Path(folder), records)
    except Exception as error:
        traceback.print_exc()
        records.append({"what": "what was to come", "failed": in_one_line(error)})
    finally:
        write(args.output, about, records)
    return int(any("failed" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
