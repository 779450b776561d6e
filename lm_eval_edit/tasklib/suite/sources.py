"""Where a task's documents come from, decided once for all eight tasks, and the harness's `custom_dataset`.

The rule: `data_dir` (a folder, or the word `demo`) always wins. Without it, a run that names no model, or `demo`, gets
the demo data, with a warning; any other run gets the hub's. Which it was stands in every document (`source`) and in the
results (`configs.<task>.metadata.provenance`).
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.tasklib import shorten
from lm_eval_edit.tasklib.arguments import given, named_model
from lm_eval_edit.tasklib.shorten import Prompt
from lm_eval_edit.tasklib.suite import documents, hub, layouts, prompts
from lm_eval_edit.tasklib.suite.catalogue import BY_LIKELIHOOD, TASKS

logger = logging.getLogger("lm_eval_edit")

DEMO_DATA = demo.DATA
SUITE = "edithurt_suite"
LEFT_OUT = ("conll2003",)  # of the tasks that are asked by likelihood


@dataclass(frozen=True)
class Source:
    """Where a task's records are.

    Attributes:
        name: What results call it: `demo`, `hub`, `folder:jsonl` or `folder:paper`.
        found: The file; None on the hub.
    """

    task: str
    name: str
    found: layouts.Found | None


def folder_of(data_dir: Any) -> Path:
    """The folder that `data_dir` means."""
    return DEMO_DATA if data_dir == demo.NAME else Path(str(data_dir)).expanduser()


def resolve(task: str, metadata: dict[str, Any]) -> Source:
    """Decide where a task's records are. Reads nothing, and works before any model is loaded.

    Args:
        task: A key of `catalogue.TASKS`.
        metadata: All model arguments and `--metadata`; `data_dir` and the model's name are looked at.

    Raises:
        UserError: The folder or the wanted file is not there; the message lists every path that was looked for.
    """
    data_dir = metadata.get("data_dir")
    if not given(data_dir):
        if named_model(metadata) is not None:
            return Source(task, "hub", None)
        data_dir = demo.NAME
    if problems := check_data_dir(data_dir):
        raise UserError(problems[0])
    folder = folder_of(data_dir)
    found = layouts.locate(task, folder)
    if found is None:
        looked = "\n".join(f"  - {candidate.path}" for candidate in layouts.candidates(task, folder))
        raise UserError(f"data_dir={data_dir} holds no data for {task}; looked for\n{looked}")
    return Source(task, demo.NAME if data_dir == demo.NAME else f"folder:{found.layout}", found)


def check_data_dir(data_dir: Any) -> list[str]:
    """What is wrong with a `data_dir` itself, one sentence a problem. Which files it holds is for `check_tasks`."""
    if not given(data_dir):
        return []
    folder = folder_of(data_dir)
    if folder.is_dir():
        return []
    return [f"data_dir={data_dir}: {'not a folder' if folder.exists() else 'no such folder'}"]


def check_tasks(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check that the data of every task of ours among `names` can be found, before anything is loaded.

    Args:
        names: Task and group names as the harness resolved them; a group of ours stands for its tasks.
        metadata: All model arguments and `--metadata`.

    Raises:
        ConfigurationError: naming every task without data and what was looked for.
    """
    problems = check_data_dir(metadata.get("data_dir"))
    for task in [] if problems else _wanted(names):
        try:
            resolve(task, metadata)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError(problems)


def check_offline(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Where the hub is set offline, check that what the tasks among `names` need of it was kept by an earlier run.

    With the hub in reach their data are loaded when they are needed: that takes minutes the first time.

    Args:
        names, metadata: As for `check_tasks`, which has passed.

    Raises:
        UserError: naming every task whose data are not there.
    """
    wanted = [task for task in _wanted(names) if resolve(task, metadata).name == "hub"]
    if not wanted or not hub.is_offline():
        return
    if lacking := [task for task in wanted if not hub.is_here(task)]:
        named = ", ".join(f"{task} ({TASKS[task].hub[0].path})" for task in lacking)
        files = ", ".join(f"{TASKS[task].stem}.jsonl" for task in lacking)
        raise UserError(
            f"no data for {named}: the Hugging Face hub is set offline (HF_HUB_OFFLINE) and no earlier run has kept "
            f"them. Give a folder that holds them, data_dir=FOLDER in --model_args or --metadata, with {files} or the "
            f"paper's task-data in it (data_dir={demo.NAME}: the demo's miniatures), or let the hub be asked"
        )


def _wanted(names: Iterable[str]) -> list[str]:
    """The tasks of the suite whose data the tasks and groups of these names need."""
    names = set(names)
    if SUITE in names:
        return list(TASKS)
    lacking = LEFT_OUT if BY_LIKELIHOOD in names else TASKS
    return [task for task in TASKS if task not in lacking or {f"edithurt_{task}", f"edithurt_{task}_mc"} & names]


@functools.cache
def _warn_demo() -> None:
    """Once for each process."""
    logger.warning(
        "demo data: not a benchmark result (real data: pretrained=<model> for the hub's, or data_dir=<folder>)"
    )


def load(
    task: str, metadata: dict[str, Any], prompt: Prompt | None = None, new_tokens: int | None = None
) -> tuple[list[documents.Document], dict[str, Any]]:
    """The task's documents, ready to be prompted, and their provenance.

    Args:
        task, metadata: As for `resolve`.
        prompt, new_tokens: What must fit into the model, where that is not the suite's prompt and new tokens.

    Returns:
        Documents with `source`, `shortened` and `overlong` added, and a dictionary of what is known about them: where
        they come from, how many there are, how many were shortened.

    Raises:
        UserError: No data, broken data, or no network.
    """
    source = resolve(task, metadata)
    provenance: dict[str, Any] = {}
    if source.found is None:
        records, name = hub.load(task)
    else:
        if source.name == demo.NAME:
            _warn_demo()
        records, name = layouts.read(task, source.found), source.name
        provenance = {"file": str(source.found.path), "sha256": _sha256(source.found.path)}
    docs, notes = documents.build(task, records)
    for doc in docs:
        doc.update(source=name, shortened=False, overlong=False)
    spec = TASKS[task]
    room = spec.new_tokens if new_tokens is None else new_tokens
    budget = shorten.fit(docs, prompt or getattr(prompts, task), spec.shortenable, room, metadata)
    if notes.get("with_passage") is False:
        logger.warning("nq: %s has no passages, the questions are asked closed-book", name)
    return docs, {
        "source": name,
        **provenance,
        "paper_split": spec.split,
        **notes,
        "documents": len(docs),
        "prompt_budget": budget,
        "shortened": sum(doc["shortened"] for doc in docs),
        "overlong": sum(doc["overlong"] for doc in docs),
    }


def _sha256(path: Path) -> str:
    """Hash of a file, or of a folder's files in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def dataset(edithurt: str, provenance: Any = None, **metadata: Any) -> dict[str, Any]:
    """`custom_dataset` of the task YAMLs: `{"test": datasets.Dataset}`.

    Args:
        edithurt: The task, from `dataset_kwargs`.
        provenance: The empty dictionary in the task's own `metadata`. The harness hands over that very object and dumps
            it with the task's configuration after the run, so what is written into it is in the results.
        metadata: All model arguments, `--metadata`, and what else stands in the task's `metadata`.
    """
    import datasets

    docs, known = load(edithurt, metadata)
    if isinstance(provenance, dict):
        provenance.update(known)
    return {"test": datasets.Dataset.from_list(docs)}
