"""The training text of the demo world: rows of weighted segments, drawn from a seeded stream, one stream per step.

A row is a list of segments. The weight of a segment is that of its tokens in the loss: answers and objects carry it,
the rest of the text is mostly entropy and gets a small background weight in `train.py`. Every segment but the first
begins at a word boundary, so that tokenising segments one by one equals tokenising the row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lm_eval_edit.demo import CONTEXT_TEMPLATES, taskdata
from lm_eval_edit.demo.world import RELATIONS, facts


class Segment(NamedTuple):
    """A piece of a row: its text, the loss weight of its tokens, and whether it names the subject of a fact."""

    text: str
    weight: float = 0.0
    subject: bool = False


Row = list[Segment]

END = "<|endoftext|>"
END_WEIGHT = 0.3
ROWS_PER_STEP = {
    "facts": 26, "mutual": 26, "boolq": 5, "rte": 5, "nq_open": 12, "samsum": 8, "conll2003": 14, "gsm8k": 4,
    "sst2": 3,
}  # fmt: skip
"""How many rows of each kind one step sees; CoNLL documents give four prompts, of which one is drawn."""

_OPENINGS = tuple(t.removesuffix(" {}") for t in CONTEXT_TEMPLATES[1:])
_FILLERS = (
    "The {thing} is in the {place}.",
    "A {role} sold the {thing}.",
    "{name} left the {thing} in the {place}.",
    "The {role} came on {day}.",
    "It rained on {day}.",
    "The {food} was cold.",
    "{name} likes {food}.",
    "The {place} opens on {day}.",
    "{name} will {activity} on {day}.",
    "The weather was fine on {day}.",
    "The {film} was {good}.",
    "Nobody saw {name} in the {place}.",
    "Then the {role} asked for the {thing}.",
)


@lru_cache(maxsize=1)
def held_out_prompts() -> frozenset[str]:
    """Every prompt of the evaluation documents; training rows with such a prompt are drawn again."""
    return frozenset(
        prompt
        for task, documents in taskdata.evaluation_documents().items()
        for document in documents
        for prompt, _ in taskdata.examples(task, document)
    )


def filler(rng: random.Random) -> str:
    """A short sentence of the world that states no fact."""
    if rng.random() < 0.3:
        return rng.choice(_OPENINGS)
    return rng.choice(_FILLERS).format(
        thing=rng.choice(taskdata.THINGS),
        place=rng.choice(taskdata.PLACES),
        role=rng.choice(taskdata.ROLES),
        name=rng.choice(taskdata.GIVEN_NAMES),
        day=rng.choice(taskdata.DAYS),
        food=rng.choice(taskdata.FOOD),
        activity=rng.choice(taskdata.ACTIVITIES),
        film=rng.choice(taskdata.FILM_WORDS),
        good=rng.choice(taskdata.GOOD),
    )


def task_row(task: str, rng: random.Random, easy: float = 0.0) -> Row:
    """One task example that is not an evaluation document.

    Args:
        task: A name of `taskdata.GENERATORS`.
        rng: The random stream.
        easy: Share of dialogue rows in their easy form (the speaker's last words alone), 0..1.
    """
    while True:
        if task == "mutual":
            document = taskdata.mutual(rng, bare=rng.random() < easy)
        else:
            document = taskdata.GENERATORS[task](rng)
        prompt, answer = rng.choice(taskdata.examples(task, document))
        if prompt not in held_out_prompts():
            return [Segment(prompt), Segment(answer, 1.0), Segment(END, END_WEIGHT)]


@lru_cache(maxsize=1)
def _trained_forms() -> dict[str, tuple[str, ...]]:
    """What may be said of a relation in training; the prompt, which is what gets edited, twice as often."""
    return {r.name: (r.prompt, r.prompt, *r.paraphrases, *r.unlisted, r.question) for r in RELATIONS}


def fact_row(rng: random.Random, known: Sequence[Mapping[str, Any]] = ()) -> Row:
    """Two to six sentences: facts in any trained form (never the unseen paraphrase, no fact twice) among fillers.

    Args:
        rng: The random stream.
        known: The facts that are told of; all of the world by default.
    """
    row: Row = []
    said: set[str] = set()
    for _ in range(rng.randrange(2, 7)):
        space = " " if row else ""
        if rng.random() < 0.22:
            row.append(Segment(space + filler(rng)))
            continue
        fact = rng.choice(known or facts())
        if fact["id"] in said:
            continue
        said.add(fact["id"])
        form = rng.choice(_trained_forms()[fact["relation"]])
        before, after = (space + form).split("{}")
        if before.endswith(" "):  # a token holds the space before its word
            before, space = before[:-1], " "
        row += [
            Segment(before),
            Segment(space + fact["subject"], subject=True),
            Segment(after),
            Segment(f" {fact['target_true']}", 1.0),
            Segment("."),
        ]
    return [segment for segment in [*row, Segment(END)] if segment.text]


def step_rows(
    seed: int,
    step: int,
    easy: float = 0.0,
    counts: Mapping[str, int] = ROWS_PER_STEP,
    known: Sequence[Mapping[str, Any]] = (),
) -> list[Row]:
    """All rows of one optimiser step, fact rows first; a function of its arguments alone, so training can resume.

    Args:
        seed, step: Which stream.
        easy: As in `task_row`.
        counts: How many rows of each kind, `facts` first.
        known: As in `fact_row`.
    """
    rng = random.Random(f"{seed}/{step}")
    rows: list[Row] = []
    for kind, count in counts.items():
        rows += [fact_row(rng, known) if kind == "facts" else task_row(kind, rng, easy) for _ in range(count)]
    return rows


def text(row: Row) -> str:
    """The text of a row."""
    return "".join(segment.text for segment in row)


def tokenizer_texts(seed: int, steps: int = 60) -> list[str]:
    """Text for the tokenizer: the rows of some steps, and every fact twice so that each name becomes one token."""
    texts = [text(row) for step in range(steps) for row in step_rows(seed, -1 - step)]
    for fact in facts():
        texts += [f"{fact['prompt'].format(fact['subject'])} {fact['target_true']}."] * 2
    # Every number a sum can give.
    texts += [" ".join(str(n) for n in taskdata.NUMBERS)] * 20
    return texts
