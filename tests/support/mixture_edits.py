"""Edits of tiny mixtures with moments of their own, and what their prompts' subjects give."""

from __future__ import annotations

import torch

from lm_eval_edit import edit_model
from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.mixtures import (
    explicit_second_moments,
)
from tests.support.tiny import FACTS, NESTED_TEMPLATES, tiny_tokenizer

LAYERS = [1, 2]
ROUTED = {"layers": LAYERS, "v_num_grad_steps": 4, "edit_experts": "routed"}
MANY = {"context_templates": NESTED_TEMPLATES, "progress": False}


def edited(model, editor, facts=FACTS[:2], batch=2, options=None, **how):
    """A ledger of a run on `model` with moments of its own."""
    options = ROUTED if options is None else options
    moments = explicit_second_moments(model, options.get("edit_experts") == "routed")
    options = {"mom2_update_weight": 5.0} | options if editor.startswith("memit") else options
    return edit_model(model, tiny_tokenizer(), facts, editor, edit_batch_size=batch, options=options,
                      second_moments=moments, **(MANY | how))  # fmt: skip


def context_of(model, templates=NESTED_TEMPLATES):
    moments = SecondMoments(explicit_second_moments(model))
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model).routed(), templates, moments)


def subject_ids(fact, context="{}"):
    """The tokens of a prompt up to its subject's last."""
    row = prompt_row(tiny_tokenizer(), fact.behind(context), fact.subject)
    return row.ids[: row.subject_last + 1]


@torch.no_grad()
def output_of(model, module, fact):
    """(d,) what a module gives at the last token of a bare prompt's subject."""
    seen = []
    handle = model.get_submodule(module).register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=torch.tensor([subject_ids(fact)]))
    handle.remove()
    return seen[0].flatten(0, -2)[-1]
