"""Forms whose edit is a question and its answer: ZsRE, WikiBigEdit, UltraEditBench, UnKE."""

from __future__ import annotations

from lm_eval_edit.facts.fields import Field
from lm_eval_edit.facts.forms.form import Form, Values, check_beside, either
from lm_eval_edit.facts.portability import MULTI_HOP, PART, PERSONA, Question, asked, questions
from lm_eval_edit.facts.probes import pairs


def _zsre(r: Field) -> list[Values]:
    # EasyEdit and the paper edit towards `alt` (counterfactual); `answers` is the truth, `pred` the model's own answer.
    check_beside(r, "loc", "loc_ans")
    return [
        {
            "subject": r["subject"].text(),
            "prompt": r["src"].text(),
            "target_new": r["alt"].text(),
            "target_true": r["answers"].first(),
            "prediction": r["pred"].first(),
            "paraphrases": r["rephrase"].texts(),
            "locality": list(pairs(r["loc"], r["loc_ans"])),
            "portability": questions(r["portability"], strict=False),
        }
    ]


def _wikibigedit(r: Field) -> list[Values]:
    # Personas ask the fact itself in somebody's voice, a figure of its own there; they are no plain paraphrases.
    check_beside(r, "loc", "loc_ans")
    check_beside(r, "mhop", "mhop_ans")
    target = r["ans"].text()
    right = (target,) if target is not None and target.strip() else ()
    personas = [Question(PERSONA, text, right) for text in r["personas"].texts() if right]
    return [
        {
            "subject": r["subject"].text(),
            "prompt": r["update"].text(),
            "target_new": target,
            "paraphrases": r["rephrase"].texts(),
            "locality": list(pairs(r["loc"], r["loc_ans"])),
            "relation": r["relation_id"].text(),
            "portability": asked(MULTI_HOP, r["mhop"], r["mhop_ans"]) + personas,
        }
    ]


def _ultraeditbench(r: Field) -> list[Values]:
    # Most of its records name no subject.
    check_beside(r, "loc", "loc_ans")
    return [
        {
            "subject": r["subject"].text(),
            "prompt": r["prompt"].text(),
            "target_new": r["ans"].text(),
            "paraphrases": either(r, "rephrase_prompt", "rephrase").texts(),
            "locality": list(pairs(r["loc"], r["loc_ans"])),
        }
    ]


def _unke(r: Field) -> list[Values]:
    # A question with a text of many sentences for its answer, and what the text says in parts; no subject.
    check_beside(r, "sub_question", "sub_answer")
    return [
        {
            "subject": r["subject"].text(),
            "prompt": r["question"].text(),
            "target_new": r["answer"].text(),
            "paraphrases": r["para_question"].texts(),
            "portability": asked(PART, r["sub_question"], r["sub_answer"]),
        }
    ]


ZSRE = Form("ZsRE", (("subject",), ("src",), ("alt",)), _zsre)
WIKIBIGEDIT = Form("WikiBigEdit", (("subject",), ("update",), ("ans",)), _wikibigedit)
ULTRAEDITBENCH = Form("UltraEditBench", (("prompt",), ("ans",)), _ultraeditbench)
UNKE = Form("UnKE", (("question",), ("para_question",), ("answer",)), _unke)
