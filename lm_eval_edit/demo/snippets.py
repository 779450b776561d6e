"""Reference texts about the demo world, in the layout of ROME's and MEMIT's attribute_snippets.json.

For each relation and object, some of the subjects that truly have it, each described by what the world knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SAMPLES = 3


def snippets(facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of `snippets.json`, made of the records of `facts.jsonl`.

    A demo fact names relation and object by their words, so those are the ids.
    """
    about: dict[str, list[dict[str, Any]]] = {}
    having: dict[tuple[str, str], list[str]] = {}
    for fact in facts:
        about.setdefault(fact["subject"], []).append(fact)
        having.setdefault((fact["relation"], fact["target_true"]), []).append(fact["subject"])
    return [
        {
            "relation_id": relation,
            "target_id": target,
            "samples": [
                {"name": subject, "text": _described(about[subject], relation)} for subject in subjects[:SAMPLES]
            ],
        }
        for (relation, target), subjects in having.items()
    ]


def _described(facts: Sequence[dict[str, Any]], first: str) -> str:
    """A subject's facts as sentences, the relation `first` first, in the wording of the facts' first paraphrase."""
    ordered = sorted(facts, key=lambda fact: fact["relation"] != first)
    sentences = [f"{fact['paraphrases'][0].format(fact['subject'])} {fact['target_true']}." for fact in ordered]
    return " ".join([f"{ordered[0]['prompt'].format(ordered[0]['subject'])} {ordered[0]['target_true']}.", *sentences])
