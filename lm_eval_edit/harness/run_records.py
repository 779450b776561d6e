"""An evaluation as the harness's command records it: the same seeds, the same results file, the same samples files.

The command writes these parts itself; a program that evaluates one model again and again puts them together here.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info, get_git_commit_hash
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}  # the harness's defaults
BOOTSTRAP = 100_000  # the harness's default too


@contextmanager
def global_seeds() -> Iterator[None]:
    """The global generators as the harness seeds them; put back afterwards, for whoever uses this in a program."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(SEEDS["random_seed"])
    np.random.seed(SEEDS["numpy_seed"])
    torch.manual_seed(SEEDS["torch_seed"])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class RunRecorder:
    """Makes the records of one evaluation after the other; what they say of the machine is asked once.

    Args:
        model_type: As `--model` would say.
    """

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self._environment: dict[str, Any] = {}

    def start(self, model_args: Mapping[str, Any], chat_template: str | None = None) -> RunClock:
        """Begin the record of one evaluation; `chat_template` is the text of the one that is applied."""
        return RunClock(self.model_type, model_args, chat_template)

    def finish(
        self, clock: RunClock, lm: LM, results: dict[str, Any], config: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        """What `lm_eval.evaluate` has returned as the contents of a results file and of its samples files.

        Args:
            clock: Of this evaluation.
            lm: What was evaluated.
            results: What the harness returned.
            config: The block `config` of the results.

        Returns:
            The results as plain JSON values, and task -> lines of its samples file.
        """
        samples = {
            task: [sample_line(row) for row in rows] for task, rows in (results.pop("samples", None) or {}).items()
        }
        results["config"] = dict(config)
        results["git_hash"] = self._about_machine("git_hash")
        results["date"] = clock.started
        results |= {key: self._about_machine(key) for key in self._environment if key != "git_hash"}
        add_tokenizer_info(results, lm)
        results["task_hashes"] = {task: task_hash(rows) for task, rows in samples.items()}
        results |= clock.stop()
        return json.loads(json.dumps(results, default=handle_non_serializable, ensure_ascii=False)), samples

    def _about_machine(self, key: str) -> Any:
        if not self._environment:  # asks git, the compiler and the package metadata: once is enough
            add_env_info(self._environment)
            self._environment["git_hash"] = get_git_commit_hash()
        return self._environment[key]


class RunClock:
    """When one evaluation began and ended, and what it was of, as the harness notes it."""

    def __init__(self, model_type: str, model_args: Mapping[str, Any], chat_template: str | None = None) -> None:
        self.started = time.time()
        self._tracker = GeneralConfigTracker()
        self._tracker.log_experiment_args(model_type, dict(model_args), None, chat_template, chat_template is not None)
        self._tracker.fewshot_as_multiturn = chat_template is not None

    def stop(self) -> dict[str, Any]:
        """The notes, for the results."""
        tracker = self._tracker
        tracker.log_end_time()
        return asdict(tracker) | {"start_time": tracker.start_time, "end_time": tracker.end_time}


def sample_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of a samples file, in the form the harness gives it there."""
    line = dict(row)
    line["resps"], line["filtered_resps"] = sanitize_list(row["resps"]), sanitize_list(row["filtered_resps"])
    line["arguments"] = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(arguments)}
        for i, arguments in enumerate(row["arguments"])
    }
    line["target"] = str(row["target"])
    return json.loads(json.dumps(line, default=handle_non_serializable, ensure_ascii=False))


def task_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """The hash of a task's documents, prompts and targets, as in the results."""
    return hash_string("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
