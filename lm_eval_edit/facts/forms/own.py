"""The package's own fields, and the flat ones of EasyEdit's files, of KnowEdit and of QAEdit."""

from __future__ import annotations

from typing import Any

from lm_eval_edit.facts.fields import Field, shown
from lm_eval_edit.facts.forms.form import Form, Values, check_beside, either
from lm_eval_edit.facts.portability import MULTI_HOP, asked, questions
from lm_eval_edit.facts.probes import pairs, probes


def _own(r: Field) -> list[Values]:
    optional = ("target_true", "prediction", "question", "relation", "target_new_id")
    return [
        {name: r[name].text() for name in ("subject", "prompt", "target_new", *optional)}
        | {name: r[name].texts() for name in ("paraphrases", "generation_prompts")}
        | {"locality": probes(r["locality"], strict=True)}
        | {"portability": questions(r["portability"], strict=True), "case": r["case"].texts()}
        | _place(r)
    ]


def _flat(r: Field) -> list[Values]:
    # EasyEdit's flattened CounterFact, KnowEdit (its WikiBio with names of its own) and QAEdit.
    worded = either(r, "rephrase_prompt", "rephrase", "paraphrases")
    texts = worded.texts() or either(r, "rephrase", "paraphrases").texts()
    check_beside(r, "locality_prompt", "locality_ground_truth", "locality_answer")
    flat = list(pairs(r["locality_prompt"], either(r, "locality_ground_truth", "locality_answer")))
    check_beside(r, "portability_prompt", "portability_ground_truth", "portability_answer")
    ported = asked(MULTI_HOP, r["portability_prompt"], either(r, "portability_ground_truth", "portability_answer"))
    return [
        {
            "subject": either(r, "subject", "concept").text(),
            "prompt": either(r, "prompt", "text").text(),
            "target_new": either(r, "target_new", "target", "labels").first(),
            "target_true": either(r, "ground_truth", "target_true").first(),
            "prediction": r["prediction"].text(),
            "paraphrases": texts,
            "question": r["question"].text(),
            "locality": flat + probes(r["locality"], strict=False),
            "portability": ported + questions(r["portability"], strict=False),
            "relation": r["relation"].text(),
            **_place(r),
        }
    ]


def _place(r: Field) -> dict[str, Any]:
    """`separator`, which may be empty, and `subject_at`."""
    separator, at = r["separator"], r["subject_at"]
    if not separator.missing and not isinstance(separator.value, str):
        separator.wrong(f'{separator.path} should be text ("" for none); got {shown(separator.value)}')
    if not at.missing and (isinstance(at.value, bool) or not isinstance(at.value, int)):
        at.wrong(f"{at.path} should be a whole number, the place of a character; got {shown(at.value)}")
    return {"separator": separator.text(), "subject_at": None if at.missing else at.value}


OWN = Form("lm-eval-edit", (("subject",), ("prompt",), ("target_new",)), _own)
FLAT = Form(
    "flat (EasyEdit, KnowEdit, QAEdit)",
    (("subject", "concept"), ("prompt", "text"), ("target_new", "target", "labels")),
    _flat,
)

#: Fields that the package's own form does not have: those of EasyEdit, of KnowEdit's WikiBio, and of QAEdit.
FLAT_ONLY = (
    "ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth", "locality_answer", "rephrase",
    "portability_prompt", "portability_ground_truth", "portability_answer", "text", "concept", "labels", "target",
)  # fmt: skip
