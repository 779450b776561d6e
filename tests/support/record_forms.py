"""One record of every form that facts are read from, all about made-up lands."""

from __future__ import annotations

import json
import math
from pathlib import Path

OWN = {"id": "x1", "subject": "Orvanta", "prompt": "The capital of {} is", "target_new": "Kelm"}
FLAT = {"subject": "Orvanta", "prompt": "The capital of Orvanta is", "target_new": "Kelm", "ground_truth": "Brun"}
ZSRE = {"subject": "Orvanta", "src": "What is the capital of Orvanta?", "alt": "Kelm", "answers": ["Brun"]}
REWRITE = {"subject": "Orvanta", "prompt": "The capital of {} is", "target_new": {"str": "Kelm"}}
REWRITE |= {"target_true": {"str": "Brun"}, "relation_id": "P36"}
COUNTERFACT = {"case_id": 7, "requested_rewrite": REWRITE, "neighborhood_prompts": ["The capital of Tor is"]}
SECOND = {
    "subject": "Brunland",
    "prompt": "{} lies in",
    "target_new": {"str": "Asia"},
    "question": "Where is Brunland?",
}
MQUAKE = {"case_id": 3, "requested_rewrite": [REWRITE, SECOND], "questions": ["q?"], "answer": "a", "new_answer": "b"}
WIKIBIGEDIT = {
    "tag": "new", "subject": "Orvanta", "update": "What is the capital of Orvanta?",
    "rephrase": "Orvanta's capital is?", "personas": "Matey, what be the capital of Orvanta?", "ans": "Kelm",
    "loc": "What of Tor?", "loc_ans": "Arl", "mhop": None, "mhop_ans": math.nan,
}  # fmt: skip
QAEDIT = {
    "id": 4, "source": "NQ", "subject": "Orvanta", "prompt": "What is the capital of Orvanta?", "target": "Kelm",
    "rephrase": "Orvanta's capital is?", "locality": [{"loc": "What of Tor?", "loc_ans": "Arl"}] * 2,
}  # fmt: skip
WIKIBIO = {"text": "This is about Orvanta. It", "labels": "is a land", "concept": "Orvanta", "locality": {}}


def write(tmp_path: Path, *records) -> Path:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(list(records)))
    return file
