"""Requests, documents and responses in the forms that the installed harness gives them.

                                up to 0.4                               from 0.5 on
    an `Instance` is made of    metadata=(task, document, repeats)      task_name=, doc_id=, repeats=
    a task is told where from   construct_requests(..., metadata=)      construct_requests(..., doc_id=)
    a filtered response is      one response                            a list, one response a repeat
    scoring is given            the filtered responses                  the responses of all repeats in one list
    a task's documents          `task_docs`                             `eval_docs`, read when they are asked for

Which form it is, is read from the class or the value at hand, never from a version number.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

Request = TypeVar("Request", bound=Instance)


class Origin(NamedTuple):
    """What a request belongs to.

    Attributes:
        task: The task's name.
        document: Its number within the evaluated split.
        repeats: How often it is asked.
    """

    task: str | None
    document: int | None
    repeats: int | None


def origin(task: ConfigurableTask, given: Mapping[str, Any]) -> Origin:
    """What the requests belong to for which the harness called `construct_requests` with the keywords `given`."""
    if "doc_id" in given:
        return Origin(task.config.task, given["doc_id"], task.config.repeats)
    return Origin(*given["metadata"])


def make(
    kind: type[Request], request_type: str, doc: Any, arguments: tuple, index: int, of: Origin, **own: Any
) -> Request:
    """A request of the installed harness.

    Args:
        kind: `Instance`, or a dataclass that adds fields of its own to it.
        request_type: `loglikelihood`, `generate_until`, ...
        doc: The document it is about.
        arguments: What the model is asked.
        index: Its place among the document's requests.
        of: What it belongs to.
        own: The fields of its own.
    """
    where: dict[str, Any]
    if _names_its_document(kind):
        where = {"task_name": of.task, "doc_id": of.document, "repeats": of.repeats}
    else:
        where = {"metadata": tuple(of)}
    return kind(request_type=request_type, doc=doc, arguments=arguments, idx=index, **where, **own)


def _names_its_document(kind: type) -> bool:
    """Whether the constructor of an `Instance` asks for the document's number; before, the metadata held it."""
    (field,) = (field for field in dataclasses.fields(kind) if field.name == "doc_id")
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def documents(task: ConfigurableTask) -> Sequence[Any]:
    """The documents of the split that a task evaluates; read now, if the harness has not done so yet."""
    return task.task_docs if hasattr(task, "task_docs") else task.eval_docs


def replace_documents(task: ConfigurableTask, documents: Sequence[dict[str, Any]]) -> None:
    """Put other documents in the place of those of the split that a task evaluates, as many as there are."""
    import datasets

    split = task.config.test_split
    task.dataset = {**task.dataset, split: datasets.Dataset.from_list(list(documents))}
    for name in ("task_docs", "eval_docs"):  # where a release keeps what it has read
        vars(task).pop(name, None)


def predicts_only(task: ConfigurableTask) -> bool:
    """Whether a task was told to score nothing (`--predict_only`)."""
    if hasattr(task, "_has_metric"):
        return task._has_metric("bypass")
    return "bypass" in task._metric_fn_list


def change_filtered(request: Instance, change: Callable[[Any], Any]) -> None:
    """Put `change(response)` in the place of each filtered response of a request."""
    for name, found in request.filtered_resps.items():
        # A response is a text or a pair; a list holds those of several repeats.
        request.filtered_resps[name] = [change(each) for each in found] if isinstance(found, list) else change(found)


def turns_of(context: Any) -> list[dict[str, Any]] | None:
    """The turns of a chat that the model behind an API renders itself; None where the context is a text.

    The harness has no text for such a model: it hands the turns over as JSON, or as they are.
    """
    if isinstance(context, str):
        return None
    found = json.loads(context.prompt) if hasattr(context, "prompt") else context
    return [dict(turn) for turn in found]


def with_turns(context: Any, turns: Sequence[Mapping[str, Any]]) -> Any:
    """Other turns in the form of a context that has some."""
    changed = [dict(turn) for turn in turns]
    return type(context)(json.dumps(changed, ensure_ascii=False)) if hasattr(context, "prompt") else changed
