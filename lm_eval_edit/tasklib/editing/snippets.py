"""Reference texts: what is written about subjects that truly have a fact's new object.

`snippets=FILE` names a file in the layout of ROME's and MEMIT's attribute_snippets.json,

    [{"relation_id": "P19", "target_id": "Q84", "samples": [{"name": "...", "text": "..."}, ...]}, ...]

`idf.npy` and `tfidf_vocab.json` beside it, if they are there, are the published weights of words; without them TF-IDF
is fitted on all the texts of the file, as the MEMIT repository does where it cannot download them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import hash_json
from lm_eval_edit.errors import ConfigurationError, UserError

IDF, VOCABULARY = "idf.npy", "tfidf_vocab.json"
_MOST_PROBLEMS = 10
_LAYOUT = '[{"relation_id": ..., "target_id": ..., "samples": [{"text": ...}, ...]}, ...]'


@dataclass(frozen=True)
class Snippets:
    """Reference texts by relation and object.

    Args:
        texts: (relation id, target id) -> texts, in the order of the file.
        path: The file.
    """

    texts: Mapping[tuple[str, str], tuple[str, ...]]
    path: Path

    def joined(self, relation: str, target: str) -> str | None:
        """The reference texts of an object as one; None where there are none."""
        found = self.texts.get((relation, target))
        return " ".join(found) if found else None

    @cached_property
    def sha256(self) -> str:
        """A hash of the texts."""
        return hash_json([[*key, *texts] for key, texts in self.texts.items()])

    @property
    def weights(self) -> str:
        """Where the weights of words come from."""
        return "published" if (self.path.parent / IDF).is_file() else "fitted on the snippets"

    @cached_property
    def vectorizer(self) -> Any:
        """scikit-learn's TfidfVectorizer with its default options, and the weights that `weights` says.

        Raises:
            UserError: one of the two files of weights is not there, or they do not fit each other.
        """
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer

        idf, vocabulary = self.path.parent / IDF, self.path.parent / VOCABULARY
        if not idf.is_file() and not vocabulary.is_file():
            return TfidfVectorizer().fit([text for texts in self.texts.values() for text in texts])
        if not idf.is_file() or not vocabulary.is_file():
            here, lacking = (idf, vocabulary) if idf.is_file() else (vocabulary, idf)
            raise UserError(
                f"{here} is there and {lacking.name} beside it is not: give both, or neither, and the weights of words "
                f"are fitted on the snippets"
            )
        try:
            weights, words = np.load(idf, allow_pickle=False), json.loads(vocabulary.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{idf} and {VOCABULARY} cannot be read: {error}") from error
        places = sorted(words.values()) if isinstance(words, dict) else None
        if weights.ndim != 1 or places != list(range(len(weights))):
            raise UserError(
                f"{vocabulary} should number the {weights.size} words that {IDF} has a weight for, from 0; give the "
                f"two files that were made together"
            )
        made = TfidfVectorizer(vocabulary=words)
        made.idf_ = weights
        return made


def read_snippets(path: str | Path) -> Snippets:
    """The reference texts of a file, read once as long as it stays as it is.

    Raises:
        UserError: no such file, or it is none of reference texts; every problem of its entries, the first ten told.
    """
    path = Path(path).expanduser()
    if path.is_dir() and (path / "attribute_snippets.json").is_file():
        path = path / "attribute_snippets.json"
    if not path.is_file():
        raise UserError(
            f"snippets={path}: {'a folder without attribute_snippets.json' if path.is_dir() else 'no such file'}; give "
            f"a JSON file {_LAYOUT}"
        )
    stat = path.stat()
    return _as_it_is(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _as_it_is(path: Path, modified: int, size: int) -> Snippets:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"snippets={path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"snippets={path} holds a {type(entries).__name__}; give a list {_LAYOUT}")
    texts: dict[tuple[str, str], list[str]] = {}
    problems = []
    for number, entry in enumerate(entries, start=1):
        problem = _add(texts, entry)
        if problem:
            problems.append(f"snippets={path}, entry {number}: {problem}")
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise ConfigurationError(problems[:_MOST_PROBLEMS] + ([f"and {more} more problems"] if more > 0 else []))
    if not any(texts.values()):
        raise UserError(f"snippets={path} holds no texts; give {_LAYOUT}")
    return Snippets({key: tuple(some) for key, some in texts.items()}, path)


def _add(texts: dict[tuple[str, str], list[str]], entry: Any) -> str | None:
    """Add an entry's texts; its problem, if it has one."""
    if not isinstance(entry, dict):
        return f"should be an object; got {type(entry).__name__}"
    for name, kind in (("relation_id", str), ("target_id", str), ("samples", list)):
        if not isinstance(entry.get(name), kind):
            return f"{name} should be {'text' if kind is str else 'a list'}; got {entry.get(name)!r:.60}"
    samples = entry["samples"]
    wrong = next((s for s in samples if not isinstance(s, dict) or not isinstance(s.get("text"), str)), None)
    if wrong is not None:
        return f'samples should hold objects with a "text"; got {wrong!r:.60}'
    key = entry["relation_id"], entry["target_id"]
    texts.setdefault(key, []).extend(sample["text"] for sample in samples)
    return None
