"""Documents in miniature of the GLUE and MMLU sets that `edithurt_glue` asks beside those of the eight tasks.

In the record schemas of the real sets. The demo's model was not trained for these prompts: they are there so that the
tasks run offline, and it answers them badly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lm_eval_edit.demo.subjects import GIVEN_NAMES, SEED
from lm_eval_edit.demo.taskdata import DAYS, FOOD, LETTERS, PLACES, ROLES, THINGS, rte

Document = dict[str, Any]
SIZE = 120  # ten that the published protocol keeps for examples, a hundred that it asks, and a few more


def _happening(rng: random.Random) -> tuple[str, str, str, str, str]:
    name, thing, place, day = rng.choice(GIVEN_NAMES), rng.choice(THINGS), rng.choice(PLACES), rng.choice(DAYS)
    return name, rng.choice(("found", "sold", "left", "hid")), thing, place, day


def rte_validation(rng: random.Random, label: int) -> Document:
    """A sentence that affirms or denies an event, and the bare event (label 0: entailed, 1: not)."""
    while (document := rte(rng))["label"] != label:
        pass
    return document


def cola(rng: random.Random, label: int) -> Document:
    """A sentence (label 1), or its words in another order (0)."""
    name, verb, thing, place, day = _happening(rng)
    words = f"{name} {verb} the {thing} in the {place} on {day}".split()
    if label == 0:
        first = list(words)
        while words == first:
            rng.shuffle(words)
    return {"sentence": " ".join(words) + ".", "label": label}


def mrpc(rng: random.Random, label: int) -> Document:
    """Two sentences that say the same in another order (label 1), or of another thing (0)."""
    name, verb, thing, place, day = _happening(rng)
    other = thing if label else rng.choice([each for each in THINGS if each != thing])
    return {
        "sentence1": f"{name} {verb} the {thing} in the {place} on {day} .",
        "sentence2": f"On {day} , in the {place} , {name} {verb} the {other} .",
        "label": label,
    }


_KINDS = {"thing in a house": THINGS, "place": PLACES, "food": FOOD, "person at work": ROLES}


def mmlu(rng: random.Random, label: int) -> Document:
    """Which of four words is of a kind; `answer` is the place of the right one."""
    offered = {kind: rng.choice(words) for kind, words in _KINDS.items()}
    kind = rng.choice(list(offered))
    choices = [word for other, word in offered.items() if other != kind]
    rng.shuffle(choices)
    choices.insert(label, offered[kind])
    return {"question": f"Which of these is a {kind}?", "subject": "words", "choices": choices, "answer": label}


GENERATORS: dict[str, tuple[Callable[[random.Random, int], Document], int]] = {
    "rte_validation": (rte_validation, 2),
    "cola": (cola, 2),
    "mrpc": (mrpc, 2),
    "mmlu": (mmlu, len(LETTERS)),
}
"""File name -> its generator, and how many labels there are."""


@lru_cache(maxsize=1)
def glue_documents() -> dict[str, list[Document]]:
    """The documents of every file, without duplicates, as many of each label, in hub schema."""
    result: dict[str, list[Document]] = {}
    for offset, (name, (generator, labels)) in enumerate(GENERATORS.items()):
        rng = random.Random(SEED + 200 + offset)
        documents: dict[str, Document] = {}
        while len(documents) < SIZE:
            document = generator(rng, len(documents) % labels)
            documents.setdefault(str(document), document)
        result[name] = [{**document, "idx": index} for index, document in enumerate(documents.values())]
    return result
