"""Runs the released scripts of Gu et al. themselves, from a clone of their repository, on outputs that are there.

A script asks a model about the documents of a file, one by one, and counts. Here its file holds our documents, its
model and tokenizer give our outputs back, and the numbers of documents that stand in its text become ours. Nothing else
of it is touched; what it counted is read off its variables.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

NAMES = {
    "gsm8k": "reasoning",
    "rte": "NLI",
    "nq": "OpenDomainQA",
    "boolq": "ClosedDomainQA",
    "mutual": "dialogue",
    "samsum": "summarization",
    "conll2003": "NER",
    "sst2": "SentimentAnalysis",
}
# The numbers of documents of the eight files; the dialogues count from 1 to below one more.
_SIZES = re.compile(r"(?<![\w.])(1319|2489|3267|886|818|872|3610|887)(?![\w.])")


def source(clone: str, task: str, edited: bool) -> str:
    """A script's text, from a work tree or from a git directory without one."""
    name = NAMES[task]
    path = f"test-task-after-code/test-{name}-after.py" if edited else f"test-task-code/test-{name}.py"
    if (Path(clone) / path).is_file():
        return (Path(clone) / path).read_text(encoding="utf-8")
    call = ["git", "--git-dir", clone, "show", f"HEAD:{path}"]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout


def _write(task: str, docs: list[dict], folder: Path) -> None:
    """The documents as the file that the script reads."""
    folder.mkdir(parents=True)
    path = folder / f"test-{NAMES[task]}"
    if task == "gsm8k":
        rows = [{"question": d["question"], "answer": f"{d['hint']}#### {d['answer']}"} for d in docs]
    elif task == "nq":
        rows = [{"question": d["question"], "output": [d["passage"]], "answer": d["answers"]} for d in docs]
    elif task == "boolq":
        rows = [{key: d[key] for key in ("passage", "question", "answer")} for d in docs]
    elif task == "samsum":
        path.with_suffix(".json").write_text(json.dumps(docs), encoding="utf-8")
        return
    elif task == "mutual":
        path.mkdir()
        for i, d in enumerate(docs, 1):
            row = {"answers": d["answer"], "options": d["options"], "article": d["article"]}
            (path / f"dev_{i}.txt").write_text(repr(row), encoding="utf-8")
        return
    elif task == "conll2003":
        sentences = [list(zip(d["tokens"], d["tags"], strict=True)) for d in docs[::4]]
        text = "".join("".join(f"{word} - - {tag}\n" for word, tag in sentence) + "\n" for sentence in sentences)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
        return
    else:
        head, rows = ["text", "label"], [[d.get("text"), int(d.get("positive", 0))] for d in docs]
        if task == "rte":
            head = ["index", "sentence1", "sentence2", "label"]
            labels = {True: "entailment", False: "not_entailment"}
            rows = [[i, d["sentence1"], d["sentence2"], labels[d["entailment"]]] for i, d in enumerate(docs)]
        with path.with_suffix(".tsv").open("w", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t").writerows([head, *rows])
        return
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class _Anything:
    """A tensor, a model or an editor, as far as the scripts look at one."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: self

    def __getitem__(self, name):
        return self

    def tolist(self):
        return [None]


class _Editor(_Anything):
    def edit(self, **kwargs):
        return None, _Anything(), None


class _Tokenizer(_Anything):
    """Decodes to the prompt it was asked about last and the output that belongs to it."""

    def __init__(self, texts, with_prompt):
        self._texts, self._with_prompt = iter(texts), with_prompt

    def __call__(self, prompts, **kwargs):
        (self._prompt,) = prompts
        return _Anything()

    def decode(self, ids):
        return (self._prompt if self._with_prompt else "") + next(self._texts)


@contextmanager
def _instead(modules: dict[str, types.ModuleType], argv: list[str], folder: Path):
    before, kept, here = {name: sys.modules.get(name) for name in modules}, sys.argv, Path.cwd()
    sys.modules.update(modules)
    sys.argv = argv
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.argv = kept
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _module(name: str, **names) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(names)
    return module


def counted(clone: str, task: str, docs: list[dict], texts: list[str], edited: bool, folder: Path) -> dict:
    """The script's variables after it has counted the outputs `texts` of the documents `docs`.

    Args:
        clone: Folder of the repository, or its git directory.
        task: Of the suite. NQ's script is kept from searching the prompt.
        docs: Documents of the suite; of conll2003 the four of each sentence in a row.
        texts: What follows the prompts, special tokens included.
        edited: Whether it is the script for edited models.
        folder: An empty folder to work in.
    """
    _write(task, docs, folder / "data/task-data")
    (folder / "data/edited-data").mkdir()
    facts = [dict.fromkeys(("src", "pred", "alt", "subject"), "x")] * 1037
    (folder / "data/edited-data/zsre.json").write_text(json.dumps(facts))
    (folder / "test-result" / f"test-{NAMES[task]}").mkdir(parents=True)
    tokenizer = _Tokenizer(texts, with_prompt=task != "nq")
    loads = types.SimpleNamespace(from_pretrained=lambda *args, **kwargs: tokenizer)
    hparams = types.SimpleNamespace(from_hparams=lambda *args: _Anything())
    methods = {f"{name}HyperParams": hparams for name in ("ROME", "MEMIT", "KN", "MEND")}
    modules = {
        "easyeditor": _module(
            "easyeditor", BaseEditor=types.SimpleNamespace(from_hparams=lambda _: _Editor()), **methods
        ),
        "transformers": _module(
            "transformers",
            GPT2Tokenizer=loads,
            GPT2LMHeadModel=types.SimpleNamespace(from_pretrained=lambda *args: _Anything()),
        ),
        "jsonlines": _module("jsonlines", Reader=lambda lines: map(json.loads, lines)),
        "nltk.translate.bleu_score": _module("bleu_score", sentence_bleu=lambda *args, **kwargs: 0),
    }
    n = len(docs)
    text = _SIZES.sub(lambda match: str(n + (match[0] == "887")), source(clone, task, edited))
    names: dict = {"__name__": "script"}
    with _instead(modules, ["script", "Instance-Sequential", "ROME", "0", "1", "1"], folder):
        try:
            exec(compile(text, f"test-{NAMES[task]}", "exec"), names)
        except ZeroDivisionError:  # a type of entity that stands nowhere: the counts are there
            assert task == "conll2003"
    return names
