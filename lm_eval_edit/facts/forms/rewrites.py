"""Forms with `requested_rewrite`: CounterFact, whose record holds one, and MQuAKE, whose record is a case of several.

MQuAKE's questions are about all facts of their case. The last fact holds them, and each names all of its case; they are
asked where the whole case has been edited.
"""

from __future__ import annotations

from typing import Any

from lm_eval_edit.facts.fields import Field
from lm_eval_edit.facts.forms.form import Form, Values, check_beside, lacking
from lm_eval_edit.facts.portability import ANY, MULTI_HOP, Question


def _rewrite(rewrite: Field) -> dict[str, Any]:
    for role in ("target_new", "target_true"):  # null is one that is not known; an object has its text
        if not rewrite.has(f"{role}_str"):
            rewrite[role].needs("str")
    return {
        "subject": rewrite["subject"].text(),
        "prompt": rewrite["prompt"].text(),
        "target_new": _object(rewrite, "target_new", "str").text(),
        "target_true": _object(rewrite, "target_true", "str").text(),
        "relation": rewrite["relation_id"].text(),
    }


def _object(rewrite: Field, role: str, part: str) -> Field:
    """A part of an object: `target_new.str`, or, where a table has flattened it, `target_new_str`."""
    flat = f"{role}_{part}"
    return rewrite[flat] if rewrite.has(flat) else rewrite[role][part]


def _counterfact(r: Field) -> list[Values]:
    values = _rewrite(r["requested_rewrite"])
    true = values["target_true"]
    # A neighbourhood prompt asks for the same object of another subject: the true object must stay.
    neighbours = r["neighborhood_prompts"].texts()
    values["locality"] = [(prompt, true) for prompt in neighbours] if true is not None else []
    return [
        values
        | {
            "paraphrases": r["paraphrase_prompts"].texts(),
            "generation_prompts": r["generation_prompts"].texts(),
            "target_new_id": _object(r["requested_rewrite"], "target_new", "id").name(),
        }
    ]


def _mquake(r: Field) -> list[Values]:
    rewrites = r["requested_rewrite"].entries()
    if not rewrites:
        r.wrong("requested_rewrite is an empty list; give it at least one rewrite")
    for rewrite in rewrites:
        for name in lacking(rewrite, _REWRITE):
            rewrite.wrong(f"field '{rewrite.path}.{name}' is missing")
    values = [_rewrite(rewrite) | {"question": rewrite["question"].text()} for rewrite in rewrites]
    if values:
        values[-1]["portability"] = _questions(r)
    return values


def _questions(r: Field) -> list[Question]:
    """Wordings of one question, of which one has to be answered (Zhong et al. 2023)."""
    check_beside(r, "questions", "new_answer")
    texts = r["questions"].texts()
    right = tuple(dict.fromkeys([*r["new_answer"].texts(), *r["new_answer_alias"].texts()]))
    group = "questions" if len(texts) > 1 else None
    return [Question(MULTI_HOP, text, right, group, ANY) for text in texts if right]


_REWRITE = (("subject",), ("prompt",), ("target_new", "target_new_str"))
COUNTERFACT = Form(
    "CounterFact",
    tuple(tuple(f"requested_rewrite.{name}" for name in names) for names in _REWRITE),
    _counterfact,
    slot_first=True,
)
MQUAKE = Form("MQuAKE", (("requested_rewrite",),), _mquake, slot_first=True, several=True)
