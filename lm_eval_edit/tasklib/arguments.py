"""What a run's arguments say about its model, as far as the tasks need to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_edit import demo

# Arguments under which the harness's model types name their model, `hf` first.
_MODEL_ARGUMENTS = ("pretrained", "model", "path", "engine")


def given(value: Any) -> bool:
    """Whether an argument was given: one of the harness's parsers leaves `none` as a word."""
    return value is not None and not (isinstance(value, str) and value.strip().lower() in ("", "none"))


def is_demo(model: Any) -> bool:
    """Whether this is the demo's model: the word `demo`, or the path of its checkpoint."""
    return demo.name_of(model) == demo.NAME


def named_model(metadata: dict[str, Any]) -> Any:
    """The model the run names, other than the demo's: mostly a string, from Python perhaps an object; else None."""
    values = (metadata.get(key) for key in _MODEL_ARGUMENTS)
    return next((value for value in values if given(value) and not is_demo(value)), None)


def is_edited(metadata: Mapping[str, Any]) -> bool:
    """Whether the run's model is edited, so that its weights have states to ask."""
    return given(metadata.get("editor"))
