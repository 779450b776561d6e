"""The data of a form: the facts that are edited, others to train on, so many documents of each task, a text.

From a folder of public data (its files have the hub's schema), or from the hub. What is there already and belongs to
the same form and sources is left as it is.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import hash_json, read_json, write_bytes, write_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.sources import load_facts
from lm_eval_edit.moments.corpus import load_corpus
from lm_eval_edit.tasklib.records import sources
from lm_eval_edit.tasklib.suite.catalogue import TASKS, record_set

from .design import Form, Work, corpus

logger = logging.getLogger("lm_eval_edit")

TEXT = "text"
SHORTEST = 200  # characters of a row of the text: of a heading nothing can be said
_HEADING = re.compile(r"=( =)* .* =( =)*")


def prepare(form: Form, work: Work, data: str | None) -> None:
    """Write what the form needs.

    Args:
        data: The folder of the public data; None for the hub.

    Raises:
        UserError: something is missing.
    """
    facts = load_facts("counterfact", data)
    wanted = {"form": form.identity, "facts": facts.sha256, "corpus": load_corpus(corpus(data)).sha256}
    mark = work.folder / "prepared.json"
    if mark.is_file() and read_json(mark).get("wanted") == wanted:
        return
    numbers = form.numbers
    pool, asked = numbers["facts"]["pool"], numbers["facts"]
    needed = max(max(part["n_edits"]) for part in form.parts.values())
    if len(facts) < pool + numbers["mend"]["val_facts"] or pool < needed:
        raise UserError(f"there are {len(facts)} facts: {pool} to draw from and some to train on are too many")
    cut = [
        replace(fact, paraphrases=fact.paraphrases[: asked["paraphrases"]], locality=fact.locality[: asked["probes"]])
        for fact in facts[:pool]
    ]
    _write(work.facts, (fact.record() for fact in cut))
    _write(work.training_facts, (fact.record() for fact in facts[pool:]))
    sources_of: dict[str, Any] = {}
    if numbers["documents"] is not None:
        sources_of = _documents(form, work, data)
    write_json(mark, {"wanted": wanted, "sources": sources_of})


def _documents(form: Form, work: Work, data: str | None) -> dict[str, Any]:
    """The first so many records of each task, and the last rows of the text. Returns what of them is known."""
    metadata = {"pretrained": form.study["model"]} | ({"data_dir": data} if data else {})
    known: dict[str, Any] = {}
    for task, count in form.numbers["documents"].items():
        if task == TEXT:
            rows = [text.strip() for text in load_corpus(corpus(data)).texts]
            rows = [row for row in rows if len(row) >= SHORTEST and not _HEADING.fullmatch(row)][-count:]
            write_bytes(work.data / "wikitext.txt", ("\n".join(rows) + "\n").encode())
            known[task] = {"rows": len(rows), "sha256": hash_json(rows)}
            continue
        records, where = sources.read(record_set(task), dict(metadata))
        stem = TASKS[task].stem
        _write(work.data / f"{stem}.jsonl", (record for _, record in records[:count]))
        if task == "sst2":  # GLUE's items are chosen from all of them
            _write(work.data / f"{stem}_validation.jsonl", (record for _, record in records))
        known[task] = {"documents": min(count, len(records)), "source": where["source"], "sha256": where.get("sha256")}
    return known


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_bytes(file, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
