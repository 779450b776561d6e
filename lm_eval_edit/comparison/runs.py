"""A run of the harness as values: what each document scored, what it was, what of it may be paired with another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_edit.comparison.logged_metrics import Metric
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib import measures

HASHES = ("doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True)
class TaskSamples:
    """The documents of one task under one filter, in the order of their ids.

    Attributes:
        doc_id: (n,) int64.
        hashes: `doc_hash`, `prompt_hash`, `target_hash` -> (n,) uint64, the first 64 bits of the logged sha256.
        answers: (n,) uint64, a hash of what was scored: the text, or which choice was the likeliest.
        clusters: (n,) integers from 0; documents that share a passage, sentence or dialogue have the same.
        cluster_field: What they share; None where every document stands alone.
        metrics: By name, the headline metric first.
        left_out: Metric -> why it cannot be compared.
        file, offsets: The samples file and where in it each document's line begins; None for frozen baselines.
        headline: The metric that stands for the task, the first in its YAML, whether or not it is among `metrics`; None
            where the results do not say.
        measures: `ability` or `edit_quality`.
        facts: (n,) uint64, a hash of the edited fact that a document is about, the same in every task; None for other
            tasks and frozen baselines.
    """

    task: str
    filter: str
    doc_id: np.ndarray
    hashes: Mapping[str, np.ndarray]
    answers: np.ndarray
    clusters: np.ndarray
    cluster_field: str | None
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    offsets: np.ndarray | None = None
    facts: np.ndarray | None = None
    headline: str | None = None
    measures: str = measures.ABILITY

    def __len__(self) -> int:
        return len(self.doc_id)

    def line(self, row: int) -> dict[str, Any]:
        """The logged sample of one document, read again from its file."""
        if self.file is None or self.offsets is None:
            raise UserError(f"{self.task}: a frozen baseline holds no texts; give the results folder it was made from")
        with self.file.open("rb") as file:
            file.seek(int(self.offsets[row]))
            sample: dict[str, Any] = json.loads(file.readline())
        return sample


@dataclass(frozen=True)
class Run:
    """One run of the harness.

    Attributes:
        path: Where it was read from.
        results: The results file without samples; for a frozen baseline what was kept of it.
        samples: (task, filter) -> its documents, in the order of the results.
        notices: What the reader should know: other files in the folder, tasks without samples.
    """

    path: Path
    results: Mapping[str, Any]
    samples: Mapping[tuple[str, str], TaskSamples]
    notices: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """The tasks with samples."""
        return list(dict.fromkeys(task for task, _ in self.samples))

    @property
    def edit(self) -> Mapping[str, Any]:
        """What `edited_hf` recorded of its edits; empty for other models."""
        return (self.results.get("config") or {}).get("edit") or {}

    @property
    def label(self) -> str:
        """A few words for tables."""
        edit = self.edit
        if not edit:
            return f"{self.results.get('model_name') or self.results.get('model_source') or self.path.stem}"
        if not edit.get("n_edits"):
            return "unedited"
        seed = edit.get("edit_seed")
        return f"{edit['editor']} n={edit['n_edits']}" + (f" seed={seed}" if seed is not None else "")
