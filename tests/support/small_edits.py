"""Runs of `edit_model` in the tests of what it does around an editor: a tiny GPT-2, ROME unless said otherwise."""

from __future__ import annotations

from lm_eval_edit import edit_model
from tests.support.tiny import TEMPLATES, tiny_tokenizer

OPTIONS = {"layers": [1], "v_num_grad_steps": 6, "v_lr": 0.5, "v_weight_decay": 1e-3}


def edit(model, facts, ledger=None, editor="rome", **options):
    """Quietly, with a few options of ROME's that the keywords change."""
    return edit_model(
        model, tiny_tokenizer(), facts, editor, options=OPTIONS | options, context_templates=TEMPLATES, ledger=ledger,
        progress=False,
    )  # fmt: skip
