"""Corpora of a few lines and batches of a few tokens, so that second moments take several batches all the same."""

from __future__ import annotations

import random
from pathlib import Path

from lm_eval_edit.moments import collect
from lm_eval_edit.moments.corpus import Corpus, load_corpus
from tests.support.tiny import WORDS


def small_batches(monkeypatch, folder: Path, tokens: int) -> None:
    """Batches of at most so many tokens, of eight texts read at once; what is collected is kept below `folder`."""
    monkeypatch.setattr(collect, "TEXTS_AT_ONCE", 8)
    monkeypatch.setattr(collect, "BATCH_TOKENS", tokens)
    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(folder / "cache"))


def small_corpus(folder: Path, lines: int, longest: int, blank: int = 0) -> Corpus:
    """A text file of so many lines of 1 to `longest` words, every `blank`-th one blank."""
    drawn = random.Random(3)
    made = [
        "" if blank and n % blank == 0 else " ".join(drawn.choices(WORDS, k=drawn.randint(1, longest)))
        for n in range(lines)
    ]
    (folder / "corpus.txt").write_text("\n".join(made))
    return load_corpus(str(folder / "corpus.txt"))
