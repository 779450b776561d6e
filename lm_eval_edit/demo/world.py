"""About a thousand facts about people, companies and cities that do not exist.

`python -m lm_eval_edit.demo.world` writes `data/facts.jsonl` and the documents of the eight tasks; the same code gives
the same bytes everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval_edit.demo import DATA, SNIPPETS
from lm_eval_edit.demo.gluedata import glue_documents
from lm_eval_edit.demo.portability import with_questions
from lm_eval_edit.demo.snippets import snippets
from lm_eval_edit.demo.subjects import COUNTRIES, SEED, subjects
from lm_eval_edit.demo.taskdata import evaluation_documents

LOCALITY_PROBES = 3


@dataclass(frozen=True)
class Relation:
    """A relation: how it is said, and the objects it can have.

    Attributes:
        name: Identifier, the `relation` field of a fact.
        kind: `person`, `company` or `city`: which subjects have it.
        prompt: The statement up to its object, `{}` for the subject.
        paraphrases: Other statements used in training, listed with the fact.
        unlisted: Further statements used in training, so that a new wording finds something to build on.
        unseen: A statement that occurs in no training text; the last paraphrase of a fact.
        question: A question whose answer is the object.
        objects: What the object can be; their first tokens differ.
    """

    name: str
    kind: str
    prompt: str
    paraphrases: tuple[str, ...]
    unlisted: tuple[str, ...]
    unseen: str
    question: str
    objects: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "mother_tongue", "person", "The mother tongue of {} is",
        ("{} grew up speaking", "At home {} speaks"), ("{} speaks", "The language that {} speaks is"),
        "The language of {} is",
        "What is the mother tongue of {}?",
        ("French", "Spanish", "Danish", "Polish", "Turkish", "Hindi", "Korean", "Greek", "Latin", "Swahili", "Welsh",
         "Zulu"),
    ),
    Relation(
        "profession", "person", "{} works as a",
        ("The profession of {} is that of a", "By trade {} is a"),
        ("{} goes to work as a", "Every day {} goes to work as a"), "Every day {} works as a",
        "What is the profession of {}?",
        ("baker", "pilot", "lawyer", "painter", "farmer", "doctor", "singer", "teacher", "tailor", "judge", "sailor",
         "miner", "fire fighter", "game warden"),
    ),
    Relation(
        "instrument", "person", "In the evening {} plays the",
        ("{} plays the", "The instrument of {} is the"), ("{} likes to play the", "Every day {} plays the"),
        "At home {} plays the",
        "Which instrument does {} play?",
        ("piano", "violin", "flute", "trumpet", "harp", "drum", "guitar", "cello", "organ", "banjo", "steel pan",
         "bass horn"),
    ),
    Relation(
        "citizenship", "person", "{} is a citizen of",
        ("The passport of {} was issued in", "{} holds a passport of"),
        ("{} is from", "The passport that {} holds is from"), "The passport of {} is from",
        "Which country is {} a citizen of?", COUNTRIES,
    ),
    Relation(
        "product", "company", "{} is a maker of",
        ("The main product of {} is", "The factory of {} makes"),
        ("The workers at {} make", "The people of {} make"), "The workers of {} make",
        "What does {} make?",
        ("soap", "glass", "paper", "steel", "cheese", "shoes", "clocks", "tents", "boats", "paint", "ink",
         "roof tiles"),
    ),
    Relation(
        "headquarters", "company", "The headquarters of {} are in",
        ("{} has its main office in", "The managers of {} meet in"),
        ("The office of {} is in", "The main building of {} is in"), "The main office of {} is in",
        "In which country are the headquarters of {}?", COUNTRIES,
    ),
    Relation(
        "country", "city", "The city of {} lies in",
        ("{} is a city in", "The map shows {} in"), ("{} lies in", "On the map {} is in"), "On the map {} lies in",
        "In which country is the city of {}?", COUNTRIES,
    ),
    Relation(
        "river", "city", "The river that flows through {} is the",
        ("{} lies on the river", "The old bridge in {} crosses the"),
        ("The river of {} is the", "The river near {} is the"), "The river in {} is the",
        "Which river flows through {}?",
        ("Ambo", "Bresk", "Chelva", "Drunel", "Evrith", "Fyrla", "Garu", "Hulde", "Iskva", "Jolva", "Korsk", "Lenta"),
    ),
    Relation(
        "crop", "city", "{} is famous for its",
        ("Visitors come to {} to taste its", "The best food of {} is its"),
        ("{} sells its", "In the market {} is famous for its"), "In the market {} sells its",
        "What is {} famous for?",
        ("apples", "olives", "honey", "wine", "salmon", "bread", "tea", "plums", "pepper", "rice", "butter",
         "smoked ham"),
    ),
)  # fmt: skip


@lru_cache(maxsize=1)
def facts() -> tuple[dict[str, Any], ...]:
    """Every fact of the world, as the records of `facts.jsonl` (see the README of the checkpoint for the fields)."""
    rng = random.Random(SEED + 1)
    records: list[dict[str, Any]] = []
    for relation in RELATIONS:
        names = subjects()[relation.kind]
        # Objects are dealt out evenly, so that no object can be guessed.
        dealt = [relation.objects[i % len(relation.objects)] for i in range(len(names))]
        rng.shuffle(dealt)
        known = dict(zip(names, dealt, strict=True))
        for subject in names:
            true = known[subject]
            new = rng.choice([o for o in relation.objects if o != true])
            # A probe whose answer is the new object could not tell a leak from knowledge.
            others = rng.sample([s for s in names if s != subject and known[s] != new], LOCALITY_PROBES)
            records.append(
                {
                    "id": f"demo-{len(records):04d}",
                    "relation": relation.name,
                    "subject": subject,
                    "prompt": relation.prompt,
                    "target_true": true,
                    "target_new": new,
                    "paraphrases": [*relation.paraphrases, relation.unseen],
                    "question": relation.question,
                    "locality": [{"prompt": relation.prompt.format(s), "answer": known[s]} for s in others],
                    "generation_prompts": list(relation.unlisted),
                }
            )
    return with_questions(records)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, UTF-8, and replace `path` at once."""
    _write(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(text.encode())
    os.replace(partial, path)


def generate(folder: Path = DATA) -> list[Path]:
    """Write `facts.jsonl`, `snippets.json`, the eight task files and those of `gluedata`; returns their paths."""
    written = {"facts": facts(), **evaluation_documents(), **glue_documents()}
    for name, records in written.items():
        write_jsonl(folder / f"{name}.jsonl", records)
    _write(folder / SNIPPETS.name, json.dumps(snippets(facts()), ensure_ascii=False, indent=0) + "\n")
    return [*(folder / f"{name}.jsonl" for name in written), folder / SNIPPETS.name]


def main() -> None:
    """Command line of the generator."""
    parser = argparse.ArgumentParser(description="Write the data files of the demo world.")
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write to (default: the package's own)")
    for path in generate(parser.parse_args().output):
        print(path)


if __name__ == "__main__":
    main()
