"""NAS's anchor: the mean norm of what targets ask of an MLP on the unedited model, measured once and kept.

An anchor takes as long as editing its facts does, and depends on nothing of a run but what is in `_identity`. So it is
kept in the cache folder like second moments, in a file named after all of that, which holds it as well. A file that
holds something else, or no finite positive number, is not used.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from lm_eval_edit._support.files import cache_folder, hash_json, read_json, write_json
from lm_eval_edit._support.locks import in_turn
from lm_eval_edit.editors._shared.batch_options import BatchOptions
from lm_eval_edit.editors._shared.goals import find_goals
from lm_eval_edit.editors._shared.rows import Row, essence_row, fact_rows
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.errors import CannotWriteError, UserError, problems_of
from lm_eval_edit.facts.chat import placed
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.sources import load_facts
from lm_eval_edit.weights.fingerprint import model_fingerprint

logger = logging.getLogger("lm_eval_edit")

DROPPED = 0.05  # of the largest norms

#: The hyper-parameters on which the goals depend, the last bits included, which the size of a pass may decide.
_OF_GOALS = (
    "v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor", "stop_after_correct",
    "v_batch_size",
)  # fmt: skip
#: Of a model's configuration, what says where it came from and not what it computes.
_NOT_COMPUTED = ("transformers_version", "architectures", "torch_dtype", "dtype", "gguf_file")


def anchors(
    context: EditContext,
    facts: Sequence[Fact],
    layers: Sequence[int],
    options: BatchOptions,
    problem_of: Callable[[Fact], str | None] = Fact.problem,
) -> tuple[dict[str, float], dict[str, str]]:
    """The anchor m of every block with goals, on the weights as they stand, those of no edit: measured, or read.

    Args:
        context: With the schedule's facts, of which the first are taken for `norm_anchor=auto`.
        facts: To take where the context has no schedule.
        layers: The blocks with goals.
        options: With `norm_anchor` and `norm_anchor_facts`.
        problem_of: Why the method cannot edit a fact, or None: such facts of a file are passed over.

    Returns:
        ({name: m}, {name: where it comes from, in words}); empty where the anchor is given as a number, or none.

    Raises:
        UserError: there are fewer facts than `norm_anchor_facts`, or a mean that is no positive number.
    """
    given = options.norm_anchor
    if not isinstance(given, str):
        return {}, {}
    some = list(context.schedule or facts) if given == "auto" else placed(_of_file(given, problem_of), context.chat)
    if problems := too_few(len(some), options, problem_of):
        raise UserError(problems[0])
    some = some[: options.norm_anchor_facts]
    same = _identity(context, some, options)
    found = {anchor_name(layer): _kept_or_measured(context, some, layer, options, same) for layer in layers}
    return {name: value for name, (value, _) in found.items()}, {name: origin for name, (_, origin) in found.items()}


def too_few(n_facts: int, options: BatchOptions, problem_of: Callable[[Fact], str | None] = Fact.problem) -> list[str]:
    """The problem of an anchor that would be taken over fewer facts than it should, as a list of sentences.

    A mean over whatever a run happens to edit would make a run of 20 facts another one than the first 20 of 100.

    Args:
        n_facts: Of the run, which are taken for `norm_anchor=auto`.
        options, problem_of: As for `anchors`.
    """
    if isinstance(options.norm_anchor, str) and options.norm_anchor != "auto":
        try:
            n_facts = len(_of_file(options.norm_anchor, problem_of))
        except UserError as error:
            return [f"norm_anchor={options.norm_anchor}: {problem}" for problem in problems_of(error)]
    if not isinstance(options.norm_anchor, str) or n_facts >= options.norm_anchor_facts:
        return []
    where = "the run edits" if options.norm_anchor == "auto" else f"{options.norm_anchor} has"
    return [
        f"norm_anchor={options.norm_anchor}: the anchor is the mean over {options.norm_anchor_facts} facts, and "
        f"{where} {n_facts}. "
        f"Give norm_anchor_facts={n_facts or 1}, norm_anchor=FILE with more facts, or the number itself"
    ]


def _of_file(path: str, problem_of: Callable[[Fact], str | None]) -> list[Fact]:
    """The facts of a file that the method can edit."""
    return [fact for fact in load_facts(path) if problem_of(fact) is None]


def mean_norm(wished: Tensor) -> float:
    """m: the mean of ‖v*‖ over v* (n, d), the largest twentieth left out."""
    norms = wished.norm(dim=1).sort().values
    return float(norms[: max(1, round(len(norms) * (1 - DROPPED)))].mean())


def anchor_name(layer: int) -> str:
    """The name of a block's anchor among what the first operation found in the model."""
    return f"norm_anchor.{layer}"


# ------------------------------------------------------------------------------------------------- from run to run


def _identity(context: EditContext, facts: Sequence[Fact], options: BatchOptions) -> dict[str, Any]:
    """All that an anchor depends on but the block, as JSON has it.

    Facts, context templates, chat template and tokenizer count by what they make of each other: the rows of tokens that
    the goals are optimised on.
    """
    model = context.model
    contexts = [template for templates in context.context_templates for template in templates]
    rows = [
        _as_list(row)
        for fact in facts
        for row in (*fact_rows(context.tokenizer, fact, contexts), essence_row(context.tokenizer, fact))
    ]
    config = json.loads(model.config.to_json_string(use_diff=False))
    computed = {name: value for name, value in config.items() if name not in _NOT_COMPUTED and name[:1] != "_"}
    return {
        "format": 1,
        "weights": model_fingerprint(model),
        "config": hash_json(computed),
        "attention": str(getattr(model.config, "_attn_implementation", None)),
        "device": model.device.type,
        "versions": [torch.__version__, transformers.__version__],
        "facts": len(facts),
        "rows": hash_json(rows),
        "options": {name: getattr(options, name) for name in _OF_GOALS},
    }


def _as_list(row: Row) -> list[Any]:
    return [row.ids, row.subject_last, list(row.labels)]


def _kept_or_measured(
    context: EditContext, facts: Sequence[Fact], layer: int, options: BatchOptions, same: dict[str, Any]
) -> tuple[float, str]:
    """A block's anchor, and where it comes from in words; who measures the same at the same time is waited for."""
    identity = same | {"layer": layer}
    path = cache_folder() / "norm_anchors" / f"{hash_json(identity)[:40]}.json"
    if (value := _kept(path, identity)) is not None:
        return value, f"read from {path}"
    with in_turn(path, "norm_anchor"):
        if (value := _kept(path, identity)) is not None:
            return value, f"read from {path}"
        value = mean_norm(find_goals(context, facts, layer, options).wished)
        if not (math.isfinite(value) and value > 0):
            raise UserError(
                f"norm_anchor={options.norm_anchor}: the mean norm of the targets of layer {layer} over {len(facts)} "
                f"facts is {value:g}, which nothing can be scaled to. Load the model with dtype=float32 or bfloat16, "
                f"or give the number itself"
            )
        told = f"measured on {len(facts)} facts"
        try:
            write_json(path, {"norm_anchor": value, "identity": identity})
        except CannotWriteError as error:
            logger.warning("the anchor of layer %d is measured again by the next run: %s", layer, error)
            return value, told
        return value, f"{told}, kept in {path}"


def _kept(path: Path, identity: dict[str, Any]) -> float | None:
    """The anchor in a file; None where there is none, with a warning where the file is not what its name says."""
    if not path.is_file():
        return None
    try:
        held = read_json(path)
    except UserError as error:
        logger.warning("%s; the anchor is measured again", error)
        return None
    value = held.get("norm_anchor") if isinstance(held, dict) else None
    if isinstance(held, dict) and held.get("identity") != identity:
        why = "it is of another model, or of other facts or options"
    elif type(value) is not float or not (math.isfinite(value) and value > 0):
        why = f"it holds no positive number (norm_anchor: {value!r})"
    else:
        return value
    logger.warning("%s is not used, %s; the anchor is measured again", path, why)
    return None
