"""The `edit` block of a results file: what was edited, how it went, and what it takes to do it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_edit._support.versions import versions
from lm_eval_edit.editors.hyperparameters import Hyperparameters
from lm_eval_edit.edits.ledger import Ledger
from lm_eval_edit.facts.contradictions import Repetitions
from lm_eval_edit.facts.fact import Facts
from lm_eval_edit.settings import EditSettings


def edit_record(
    settings: EditSettings,
    hyperparameters: Hyperparameters | None,
    facts: Facts | None,
    repetitions: Repetitions,
    ledger: Ledger | None,
    *,
    model: Mapping[str, Any],
    weights_fingerprint: str,
    unedited_fingerprint: str,
) -> dict[str, Any]:
    """Plan, norms, guards, efficacy, fingerprints and versions of a run of edits, for its results.

    Args:
        settings, hyperparameters, facts, repetitions: As planned; no hyper-parameters and no facts with editor=none.
        ledger: The operations; those applied are told of. None with editor=none.
        model: What the model was loaded from (`source.describe_source`).
        weights_fingerprint: Of the weights as they stand.
        unedited_fingerprint: Of the weights before any edit.
    """
    record: dict[str, Any] = {
        "editor": settings.editor,
        "n_edits": 0,
        "model": dict(model),
        "weights_fingerprint": weights_fingerprint,
        "versions": versions(),
    }
    if ledger is None or hyperparameters is None or facts is None:
        return record
    operations = ledger.applied_operations
    n_edits = sum(len(operation.facts) for operation in operations)
    seconds = [operation.record["seconds"] for operation in operations]
    return record | {
        "n_edits": n_edits,
        "edit_batch_size": settings.edit_batch_size,
        "options": hyperparameters.editor.describe(),
        "options_from_model": next((o.record["details"].get("from_model", {}) for o in operations), {}),
        "preset": hyperparameters.preset,
        "layers": hyperparameters.editor.layers(),
        "dataset": {
            "source": facts.source,
            "sha256": facts.sha256,
            "usable": len(facts),
            "skipped": [{"id": skipped.id, "reason": skipped.reason} for skipped in facts.skipped],
            **repetitions.record(),
        },
        "edit_seed": settings.edit_seed,
        "edit_offset": settings.edit_offset,
        "fact_ids": [fact.id for operation in operations for fact in operation.facts],
        "parameters": ledger.weights.report(),
        "ranks": [operation.record["ranks"] for operation in operations],
        "after_each_edit": [operation.record["after"] for operation in operations],
        "before_each_edit": [operation.record["before"] for operation in operations],
        "details": [operation.record["details"] for operation in operations],
        "guards": ledger.guards,
        "seconds_per_edit": sum(seconds) / max(n_edits, 1),
        "second_moments": ledger.extra["second_moments_source"],
        "context_templates": ledger.extra["context_templates"],
        "chat_template": ledger.extra.get("chat"),
        "ledger": str(ledger.directory) if ledger.directory else None,
        "unedited_fingerprint": unedited_fingerprint,
    }
