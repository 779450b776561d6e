"""Knowledge-editing methods, one file each; see `base` for what they share."""

from lm_eval_edit.editors.base import (
    EditContext,
    Editor,
    EditResult,
    editor_names,
    find_editor,
    option,
)
from lm_eval_edit.editors.templates import TemplatePlan

__all__ = ["EditContext", "EditResult", "Editor", "TemplatePlan", "editor_names", "find_editor", "option"]
