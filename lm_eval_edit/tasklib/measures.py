"""What a task of the harness measures, what guessing scores in it, and which of its metrics stands for it.

Read from the configuration that the harness dumps into its results (`configs.<task>`):

    metadata: {measures: edit_quality}    the task asks about the edits themselves; every other task measures ability
    metadata: {chance: 0.5}               what an answer picked blindly scores, from 0 to below 1
    metadata: {quantities: [logprob]}     metrics that are no shares from 0 to 1, whatever values they happen to have:
                                          they have no level of chance and are averaged with no share
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval_edit.errors import UserError

ABILITY, EDIT_QUALITY = "ability", "edit_quality"
NOTHING = "bypass"  # what the harness calls the metric of a task that it was told not to score (--predict_only)
FORMAT = "valid"  # the metric of ours that says whether the output has the asked form at all; no guess makes it so
# Of our own tasks in results that were written before their YAML said so.
_EDITING_BEFORE = frozenset(f"edithurt_{name}" for name in ("efficacy", "generalization", "locality", "counterfact"))
_CHANCE_BEFORE = {"edithurt_rte": 0.5, "edithurt_boolq": 0.5, "edithurt_sst2": 0.5, "edithurt_mutual": 0.25}


def _metadata(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("metadata")
    return found if isinstance(found, Mapping) else {}


def measures(task: str, config: Mapping[str, Any]) -> str:
    """`EDIT_QUALITY` or `ABILITY`: figures of the two are never averaged together."""
    said = _metadata(config).get("measures")
    if said is None:
        return EDIT_QUALITY if task in _EDITING_BEFORE else ABILITY
    return EDIT_QUALITY if said == EDIT_QUALITY else ABILITY


def stated_chance(task: str, config: Mapping[str, Any]) -> float | None:
    """What guessing scores, by the task's own word; None where it has none.

    Raises:
        UserError: a number that is no share.
    """
    said = _metadata(config).get("chance")
    if isinstance(said, bool) or not isinstance(said, int | float):
        return _CHANCE_BEFORE.get(task)
    if not 0 <= said < 1:
        raise UserError(f"{task}: metadata.chance is {said}; want a share from 0 to below 1, such as 0.5")
    return float(said)


def quantities(config: Mapping[str, Any]) -> frozenset[str]:
    """The metrics that the task calls quantities: log-probabilities, perplexities."""
    said = _metadata(config).get("quantities")
    return frozenset(name for name in said if isinstance(name, str)) if isinstance(said, list | tuple) else frozenset()


def counted_chance(config: Mapping[str, Any], choices: Sequence[int]) -> float | None:
    """What a blind pick among a task's choices scores: the mean of 1/k over documents with k choices.

    Args:
        config: The task's configuration; only of `multiple_choice` are the requests of a document its choices.
        choices: (n,) requests of each document.

    Returns:
        None for tasks of another kind, or without documents that have a choice.
    """
    if config.get("output_type") != "multiple_choice" or not choices:
        return None
    # The metric acc_mutual_info asks every choice once more, without its question.
    times = 2 if any(entry.get("metric") == "acc_mutual_info" for entry in config.get("metric_list") or ()) else 1
    counts = [count // times for count in choices]
    return sum(1 / count for count in counts) / len(counts) if min(counts) > 1 else None


def headline(config: Mapping[str, Any], present: Iterable[str]) -> str | None:
    """The metric that stands for a task: the first in its YAML, whether or not it can be recomputed.

    Args:
        present: The metrics that its results or samples hold, which tell the first where the YAML lists none.
    """
    listed = [entry.get("metric") for entry in config.get("metric_list") or ()]
    return next((name for name in (*listed, *present) if isinstance(name, str)), None)
