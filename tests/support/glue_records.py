"""Records of the sets behind `edithurt_glue`, made up: as many of each label as a list of published length needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Task -> the file of its records.
FILES = {
    "nli": "nli.jsonl", "sst": "sst2_validation.jsonl", "cola": "cola_validation.jsonl", "rte": "rte_validation.jsonl",
    "mmlu": "mmlu_validation.jsonl", "mrpc": "mrpc_validation.jsonl", "dialogue": "mutual.jsonl",
    "sentiment": "sst2_validation.jsonl",
}  # fmt: skip


def record(task: str, number: int) -> dict[str, Any]:
    """The number-th record; labels take turns."""
    if task in ("nli", "rte", "mrpc"):
        return {"sentence1": f"It is {number}.", "sentence2": f"There is {number}.", "label": number % 2, "idx": number}
    if task in ("sst", "sentiment", "cola"):
        return {"sentence": f"a film of {number} hours . ", "label": number % 2, "idx": number}
    options = [f"it is {number + place}" for place in range(4)]
    if task == "mmlu":
        return {"question": f"What is {number}?", "subject": "numbers", "choices": options, "answer": number % 4}
    return {
        "article": f"m : what is {number} ?",
        "options": options,
        "answers": "ABCD"[number % 4],
        "id": f"dev_{number}",
    }


def write_all(folder: Path, count: int = 120) -> Path:
    """A file of every set, `count` records each."""
    for task, name in FILES.items():
        lines = [json.dumps(record(task, number)) + "\n" for number in range(count)]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder
