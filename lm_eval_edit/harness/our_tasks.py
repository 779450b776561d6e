"""Our tasks and groups as their YAML files declare them, read without the harness, which takes seconds to import."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lm_eval_edit.errors import UserError, nearest

PREFIX = "edithurt_"  # every name of ours starts so, no name of the harness's does


def tasks_dir() -> Path:
    """The folder with our task YAML files: inside the package when installed, beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "tasks"]
    if (package.parent / "pyproject.toml").is_file():  # never take some other `tasks` in site-packages for ours
        places.append(package.parent / "tasks")
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no folder of task files: looked for {' and '.join(map(str, places))}")


@dataclass(frozen=True)
class TaskEntry:
    """One task or group that `--tasks` accepts.

    Args:
        name: What `--tasks` accepts.
        kind: "task" or "group".
        description: The first sentence of the comment at the top of the YAML file, or the empty string.
        path: The YAML file.
    """

    name: str
    kind: str
    description: str
    path: Path


class _Loader(yaml.SafeLoader):
    """Reads the harness's YAML dialect as data: `!function` stays a string."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: node.value)


def list_tasks(folder: Path | None = None) -> list[TaskEntry]:
    """The groups, then the tasks, each in the order of their names.

    Args:
        folder: Where to look; our own task folder by default.
    """
    entries = []
    for path in (folder or tasks_dir()).rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        config = yaml.load(text, _Loader)
        if not isinstance(config, dict):
            continue
        kind = "group" if "group" in config else "task"
        if isinstance(config.get(kind), str):
            entries.append(TaskEntry(config[kind], kind, _first_sentence(text), path))
    return sorted(entries, key=lambda entry: (entry.kind, entry.name))


def our_names() -> set[str]:
    """The names of all our tasks and groups."""
    return {task.name for task in list_tasks()}


def all_ours(tasks: Sequence[str], ours: Collection[str]) -> bool:
    """Whether each of `tasks`, names or patterns such as `edithurt_*`, can only mean names among `ours`.

    Raises:
        UserError: a name with our prefix that is not one of ours; the message gives the nearest one.
    """
    with_our_prefix = [task for task in tasks if task.startswith(PREFIX) and not task.endswith(".yaml")]
    for task in with_our_prefix:
        if not fnmatch.filter(ours, task):
            raise UserError(
                f"lm-eval-edit: no task or group is called {task!r}.{nearest(task, ours)} "
                "`lm-eval-edit ls tasks` lists them all."
            )
    return 0 < len(tasks) == len(with_our_prefix)


def _first_sentence(text: str) -> str:
    comment = []
    for line in text.splitlines():
        words = line.lstrip("#").strip()
        if not line.startswith("#") or not words:
            break
        comment.append(words)
    return " ".join(comment).split(". ")[0].rstrip(".")
