"""Ordinary text, for what a model's weights carry besides the facts that are edited."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from lm_eval_edit._support.files import hash_json, read_records, read_text, sha256
from lm_eval_edit.errors import UserError, nearest

#: Named corpora on the hub: (data set, configuration). The ROME authors' statistics are from Wikipedia.
HUB = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
}


@dataclass(frozen=True)
class Corpus:
    """Texts in a fixed order.

    Attributes:
        texts: The texts, in the order of their source.
        source: A path, or `hub:<data set>/<configuration>`.
        sha256: A hash of the texts.
    """

    texts: Sequence[str]
    source: str
    sha256: str

    def chunks(self, size: int) -> Iterator[list[str]]:
        """All texts that are not blank, `size` at a time, shuffled as the published statistics are (Random(1))."""
        order = list(range(len(self.texts)))
        random.Random(1).shuffle(order)
        for start in range(0, len(order), size):
            texts = [self.texts[index] for index in order[start : start + size]]
            yield [text for text in texts if text.strip()]


def corpus_problem(name: str) -> str | None:
    """Why `name` cannot be a corpus, as far as can be told without reading it; None if it can."""
    if name in HUB or Path(name).expanduser().is_file():
        return None
    return f"{name}: no such text file, and not one of the named corpora {', '.join(HUB)}.{nearest(name, HUB)}"


def load_corpus(name: str) -> Corpus:
    """Load a corpus.

    Args:
        name: `wikitext` or `wikipedia` (from the hub), or a file: .jsonl or .json with a field `text` in each record,
            any other as plain text with one text per line.

    Raises:
        UserError: no such file, records without text, or no network.
    """
    if problem := corpus_problem(name):
        raise UserError(f"corpus {problem}")
    if name in HUB:
        return _from_hub(name)
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", ".json"):
        texts = []
        for number, record in read_records(path):
            text = record.get("text") if isinstance(record, dict) else record
            if not isinstance(text, str):
                raise UserError(f"{path}, record {number}: want a text, or a record with a field 'text'")
            texts.append(text)
    else:
        texts = read_text(path).splitlines()
    if not any(text.strip() for text in texts):
        raise UserError(f"{path} holds no text")
    return Corpus(texts, str(path), sha256("\0".join(texts).encode()))


def _from_hub(name: str) -> Corpus:
    import datasets

    repository, configuration = HUB[name]
    try:
        split = datasets.load_dataset(repository, configuration, split="train")
    except Exception as error:  # the hub's client raises dozens of types; all mean the same to the user
        raise UserError(
            f"corpus {name} could not be fetched from the hub ({repository}): {type(error).__name__}. Without network, "
            f"give a text file (one text per line) or a JSONL file with a field 'text'"
        ) from error
    # `datasets` derives the fingerprint from the data files' hashes; hashing the 20 GB of Wikipedia again says no more.
    identity = hash_json([repository, configuration, split._fingerprint])
    return Corpus(_Column(split), f"hub:{repository}/{configuration}", identity)


class _Column(Sequence[str]):
    """The texts of a data set, read from disk one by one."""

    def __init__(self, split: Any):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        found: str | list[str] = self._split[index]["text"]
        return found
