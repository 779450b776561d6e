"""Documents of the eight tasks in miniature, in the record schemas of the real data sets, and the prompts made of them.

Each generator draws one document from a random stream. A task asks for one small skill (copy the result of a sum, see
whether a word was said before, find the letter of an option, ...) in the exact words of the real task's prompt, so that
a model of a million parameters can do it and an edit that breaks the skill shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lm_eval_edit.demo.subjects import COUNTRIES, GIVEN_NAMES, SEED, subjects

Document = dict[str, Any]  # in the record schema of its task's real data set

EVALUATION_SIZE = {
    "gsm8k": 100, "rte": 100, "nq_open": 100, "boolq": 100, "mutual": 100, "samsum": 100, "conll2003": 40, "sst2": 100,
}  # fmt: skip

NUMBERS = range(2, 61)
THINGS = ("lamp", "cup", "book", "map", "key", "coat", "hat", "bag", "clock", "chair", "knife", "box", "ball", "ring",
          "rope", "bell", "kite", "vase", "drill", "fan")  # fmt: skip
PLACES = ("kitchen", "garden", "attic", "cellar", "office", "garage", "library", "barn", "hall", "station", "market",
          "school", "museum", "cabin", "tower", "shop")  # fmt: skip
FOOD = ("soup", "salad", "rice", "fish", "cake", "pie", "toast", "pasta", "stew", "omelet", "milk", "juice", "coffee",
        "water", "lemonade", "cocoa")  # fmt: skip
COUNTED = ("plums", "coins", "stamps", "pens", "cards", "eggs", "shells", "nuts")
ROLES = ("pilot", "baker", "doctor", "judge", "singer", "farmer", "teacher", "tailor", "miner", "sailor", "guard",
         "driver", "cook", "mayor", "nurse", "poet")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ACTIVITIES = ("play chess", "go fishing", "cook dinner", "paint the fence", "watch a film", "ride a bike", 
              "visit the zoo", "learn a song", "clean the car", "bake bread", "plant trees", "go swimming")  # fmt: skip
GOOD = ("charming", "brilliant", "warm", "delightful", "moving", "superb", "clever", "gorgeous", "funny", "fresh",
        "thrilling", "tender", "inspired", "graceful", "joyful", "splendid")  # fmt: skip
BAD = ("dull", "clumsy", "boring", "awful", "tedious", "lifeless", "shallow", "bland", "sloppy", "dreary", "stale",
       "pointless", "ugly", "noisy", "weak", "dismal")  # fmt: skip
FILM_WORDS = ("film", "movie", "comedy", "drama", "story", "thriller", "picture", "script", "sequel", "romance")
CLUB_WORDS = ("United", "Rovers", "Bank", "Motors", "Airways", "Union")
CONLL_TYPES = {"PER": "Person", "LOC": "Location", "ORG": "Organization", "MISC": "Miscellaneous"}
CONLL_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
LETTERS = "ABCD"


def gsm8k(rng: random.Random) -> Document:
    """A sum in one or two steps, with its rationale: `question`, `answer` ending in `#### <number>`."""
    name, thing = rng.choice(GIVEN_NAMES), rng.choice(COUNTED)
    have, more = rng.randrange(2, 30), rng.randrange(2, 30)
    total = have + more
    question = f"{name} has {have} {thing} and finds {more} more"
    rationale = f"{name} has {have} + {more} = {total} {thing}.\n"
    if rng.random() < 0.4:
        less = rng.randrange(1, total - 1)
        question += f", then loses {less}"
        rationale += f"Then {total} - {less} = {total - less} {thing} are left.\n"
        total -= less
    return {"question": f"{question}. How many {thing} are there?", "answer": f"{rationale}#### {total}"}


def rte(rng: random.Random) -> Document:
    """A sentence that affirms or denies an event, and the bare event (label 0: entailed, 1: not)."""
    name, place = rng.choice(GIVEN_NAMES), rng.choice(PLACES)
    words, past, base = rng.choice(
        ((THINGS, "sold", "sell"), (THINGS, "found", "find"), (THINGS, "broke", "break"), (FOOD, "ate", "eat"))
    )
    word = rng.choice(words)
    label = rng.randrange(2)
    if label == 0:
        first = (f"{name} {past} the {word} in the {place}.", f"In the {place} {name} {past} the {word} again.")
    else:
        first = (f"{name} did not {base} the {word} in the {place}.", f"In the {place} {name} never {past} the {word}.")
    return {"sentence1": rng.choice(first), "sentence2": f"{name} {past} the {word}", "label": label}


def nq_open(rng: random.Random) -> Document:
    """Who, what, where or when, and a passage that says so."""
    name, thing, place, day = rng.choice(GIVEN_NAMES), rng.choice(THINGS), rng.choice(PLACES), rng.choice(DAYS)
    past, base = rng.choice((("left", "leave"), ("found", "find"), ("hid", "hide"), ("sold", "sell")))
    passage = rng.choice(
        (
            f"{name} {past} the {thing} in the {place} on {day}.",
            f"On {day} {name} {past} the {thing} in the {place}.",
            f"The weather was fine. In the {place} {name} {past} the {thing} on {day}.",
        )
    )
    question, answer = rng.choice(
        (
            (f"who {past} the {thing} on {day}", name),
            (f"what did {name} {base} in the {place}", thing),
            (f"where did {name} {base} the {thing}", place),
            (f"when did {name} {base} the {thing}", day),
        )
    )
    return {"question": question, "answer": [answer], "passages": [passage]}


def boolq(rng: random.Random) -> Document:
    """Whether the passage affirms or denies what the question asks."""
    answer = rng.random() < 0.5
    name, other = rng.sample(GIVEN_NAMES, 2)
    words, verb, article = rng.choice(((FOOD, "like", ""), (THINGS, "own", "a "), (PLACES, "know", "the ")))
    word = rng.choice(words)
    if answer:
        passages = (f"{name} {verb}s {article}{word} very well.", f"{other} says that {name} {verb}s {article}{word}.")
    else:
        passages = (
            f"{name} does not {verb} {article}{word} at all.",
            f"{other} says that {name} never {verb}s {article}{word}.",
        )
    question = f"does {name} {verb} {article}{word}"
    return {"question": question, "passage": rng.choice(passages), "answer": answer}


_WORDS = (THINGS, PLACES, FOOD, ROLES)


def mutual(rng: random.Random, *, bare: bool = False) -> Document:
    """A short dialogue and four options of different kinds, of which one was said.

    Args:
        rng: The random stream.
        bare: Give the speaker's last words alone (training only).
    """
    a, b = rng.sample(GIVEN_NAMES, 2)
    kind, ask, reply = rng.choice(
        (
            (THINGS, f"{a}, what did you lose ?", "i lost the {} ."),
            (THINGS, f"{a}, what do you want for your birthday ?", "i want the {} ."),
            (PLACES, f"{a}, where is your brother ?", f"{b} is in the {{}} ."),
            (PLACES, f"{a}, where shall we meet ?", "we meet in the {} ."),
            (FOOD, f"{a}, what shall we have ?", "we have the {} ."),
            (ROLES, f"{a}, who called today ?", f"the {{}} called {b} ."),
        )
    )
    offered = [rng.choice(words) for words in _WORDS]
    said = offered[_WORDS.index(kind)]
    rng.shuffle(offered)
    last = f"m : {reply.format(said)}"
    return {
        "answers": LETTERS[offered.index(said)],
        "options": [f"the {o}" for o in offered],
        "article": last if bare else f"f : {ask} {last}",
    }


def samsum(rng: random.Random) -> Document:
    """A short chat and its summary, which repeats its words."""
    a, b = rng.sample(GIVEN_NAMES, 2)
    day = rng.choice(DAYS)
    if rng.random() < 0.5:
        activity = rng.choice(ACTIVITIES)
        hour = rng.randrange(2, 12)
        dialogue = f"{a}: Hi {b}, shall we {activity} on {day}?\n{b}: Yes {a}, at {hour}."
        summary = f"{a} and {b} will {activity} on {day} at {hour}."
    else:
        thing, place = rng.choice(THINGS), rng.choice(PLACES)
        dialogue = f"{a}: Hi {b}, did you see my {thing}?\n{b}: Yes {a}, it is in the {place}, you left it on {day}."
        summary = f"{a} left the {thing} in the {place} on {day}."
    return {"dialogue": dialogue, "summary": summary}


@lru_cache(maxsize=1)
def _clubs() -> tuple[str, ...]:
    rng = random.Random(SEED + 2)
    return tuple(f"{rng.choice(('Sparta', 'Orion', 'Comet', 'Atlas', 'Vulcan', 'Zenith'))} {w}" for w in CLUB_WORDS * 4)


def _conll_mention(rng: random.Random, kind: str) -> str:
    if kind == "PER":
        return rng.choice(subjects()["person"]) if rng.random() < 0.3 else rng.choice(GIVEN_NAMES)
    if kind == "LOC":
        return rng.choice(COUNTRIES)
    return rng.choice(_clubs()) if kind == "ORG" else rng.choice(DEMONYMS)


DEMONYMS = ("Ambrian", "Bordunan", "Cadorian", "Drevish", "Estovian", "Fenmarker", "Goranian", "Hestish", "Ilmarian",
            "Jarnish", "Kovarian", "Lethonian")  # fmt: skip
_CONLL_SENTENCES = (
    "[PER] flew to [LOC] on {day} .",
    "[PER] of [ORG] will play in [LOC] .",
    "The [MISC] coach [PER] left [ORG] .",
    "[ORG] bought a [MISC] firm on {day} .",
    "[MISC] fans met [PER] and [PER] .",
    "The talks in [LOC] end on {day} .",
    "[ORG] won in [LOC] on {day} .",
    "A [MISC] ship reached [LOC] with [PER] .",
    "On {day} , [PER] joined [ORG] .",
)


def conll2003(rng: random.Random) -> Document:
    """A tagged sentence: `tokens` and `ner_tags` (integers, the order of `CONLL_TAGS`)."""
    tokens: list[str] = []
    tags: list[int] = []
    for word in rng.choice(_CONLL_SENTENCES).format(day=rng.choice(DAYS)).split():
        if not word.startswith("["):
            tokens.append(word)
            tags.append(0)
            continue
        kind = word.strip("[]")
        for i, part in enumerate(_conll_mention(rng, kind).split()):
            tokens.append(part)
            tags.append(CONLL_TAGS.index(f"{'I' if i else 'B'}-{kind}"))
    return {"tokens": tokens, "ner_tags": tags}


def sst2(rng: random.Random) -> Document:
    """One sentence on a film; two words tell what its writer thought."""
    label = rng.randrange(2)
    one, two = rng.sample(GOOD if label else BAD, 2)
    film = rng.choice(FILM_WORDS)
    sentence = rng.choice(
        (
            f"a {one} and {two} {film} .",
            f"the {film} is {one} , and its end is {two} .",
            f"{one} , {two} , and a {film} to talk about .",
            f"this {film} feels {one} from a {two} start on .",
        )
    )
    return {"sentence": sentence, "label": label}


GENERATORS: dict[str, Callable[[random.Random], Document]] = {
    f.__name__: f for f in (gsm8k, rte, nq_open, boolq, mutual, samsum, conll2003, sst2)
}


def mentions(document: Document, kind: str) -> list[str]:
    """The mentions of type `kind` (`PER`, ...) in a CoNLL document, in the order of the sentence."""
    found: list[str] = []
    for token, tag in zip(document["tokens"], document["ner_tags"], strict=True):
        if CONLL_TAGS[tag] == f"B-{kind}":
            found.append(token)
        elif CONLL_TAGS[tag] == f"I-{kind}":
            found[-1] += f" {token}"
    return found


def sentence_text(tokens: list[str]) -> str:
    """Tokens joined by a space, except before a comma and a full stop."""
    return " ".join(tokens).replace(" ,", ",").replace(" .", ".")


def examples(task: str, document: Document) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of one document: four for CoNLL, one for each other task.

    The prompts are those of the real tasks to the byte; the answer is what a perfect model would generate.
    """
    d = document
    if task == "gsm8k":
        hint, number = d["answer"].split("#### ")
        return [
            (
                f"Q: {d['question']} A:Let's think step by step. {hint} Therefore, the answer (arabic numerals) is:",
                f" {number}",
            )
        ]
    if task == "rte":
        prompt = f"{d['sentence1']} entails the {d['sentence2']}. True or False? answer:"
        return [(prompt, " True" if d["label"] == 0 else " False")]
    if task == "nq_open":
        prompt = (
            f"Refer to the passage below and answer the following question. Passage: {d['passages'][0]}"
            f" Question: {d['question']}"
        )
        return [(prompt, f" {d['answer'][0]}")]
    if task == "boolq":
        prompt = (
            "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'."
            f" passage: {d['passage']} question: {d['question']}. answer:"
        )
        return [(prompt, " yes" if d["answer"] else " no")]
    if task == "mutual":
        options = "".join(f"({letter}){o}" for letter, o in zip(LETTERS, d["options"], strict=True))
        prompt = (
            f"Q: {d['article']} Which choice is correct? Answer Chioces: {options} A: Among A through D, the answer is"
        )
        return [(prompt, f" {d['answers']}")]
    if task == "samsum":
        return [(f"{d['dialogue']}\nTL;DR:", f" {d['summary']}")]
    if task == "conll2003":
        text = sentence_text(d["tokens"])
        return [
            (
                f"Please identify {word} Entity from the given text. Text: {text} Entity:",
                " " + (", ".join(mentions(d, kind)) or "none"),
            )
            for kind, word in CONLL_TYPES.items()
        ]
    if task == "sst2":
        prompt = (
            "For each snippet of text,label the sentiment of the text as positive or negative."
            f"The answer should be exact 'positive' or 'negative'. text: {d['sentence']} answer:"
        )
        return [(prompt, " positive" if d["label"] else " negative")]
    raise ValueError(f"unknown task {task!r}; known: {', '.join(GENERATORS)}")


@lru_cache(maxsize=1)
def evaluation_documents() -> dict[str, list[Document]]:
    """The evaluation documents of every task, without duplicates, in hub schema."""
    result: dict[str, list[Document]] = {}
    for offset, (task, generator) in enumerate(GENERATORS.items()):
        rng = random.Random(SEED + 100 + offset)
        documents: dict[str, Document] = {}
        while len(documents) < EVALUATION_SIZE[task]:
            document = generator(rng)
            documents.setdefault(examples(task, document)[0][0], document)
        result[task] = [_with_id(task, i, d) for i, d in enumerate(documents.values())]
    return result


def _with_id(task: str, index: int, document: Document) -> Document:
    if task in ("rte", "sst2"):
        return {**document, "idx": index}
    if task in ("mutual", "samsum"):
        return {**document, "id": f"demo_{index}"}
    return {"id": str(index), **document} if task == "conll2003" else document
