"""`edithurt_perplexity`: how well a model predicts a fixed text, row by row, through the harness's rolling likelihood.

A row is a paragraph that the model reads from its own start; blank rows and headings (`= Title =`) are left out. Two
figures, both of all rows together and both better where lower:

    bits_per_byte     -log2 P(text) / its bytes: the headline, comparable between tokenizers, finite as long as the
                      model's figures are
    word_perplexity   exp(-ln P(text) / its words), as the harness's `wikitext` counts them; infinite where it overflows

Each has a standard error by a bootstrap over rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask

from lm_eval_edit import demo
from lm_eval_edit._support.files import read_records, sha256
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.harness import exact_requests, requests, rolling
from lm_eval_edit.moments.corpus import load_corpus
from lm_eval_edit.tasklib.bootstrap import cluster_bootstrap
from lm_eval_edit.tasklib.records.sources import folder_of, place_of

TASK = "edithurt_perplexity"
HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
FILES = ("wikitext.jsonl", "wikitext_test.jsonl", "wikitext.json", "wikitext.txt", "corpus.jsonl", "corpus.txt")
_HEADING = re.compile(r"=( =)* .* =( =)*")

# ------------------------------------------------------------------------------------------------------------ the text


@dataclass(frozen=True)
class Source:
    """Where the text is.

    Attributes:
        name: What results call it: `demo`, `hub` or `folder`.
        file: The file; None on the hub.
    """

    name: str
    file: Path | None


def resolve(metadata: Mapping[str, Any]) -> Source:
    """Decide where the text is, by the rule of all records (`records.sources`).

    Raises:
        UserError: the folder, or every file in it that could be the text, is missing.
    """
    data_dir = place_of(metadata)
    if data_dir is None:
        return Source("hub", None)
    folder = folder_of(data_dir)
    if data_dir == demo.NAME:
        return Source(demo.NAME, folder / "boolq.jsonl")
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        looked = ", ".join(FILES)
        raise UserError(
            f"data_dir={data_dir} holds no text for perplexity; looked for {looked}: JSON(L) with a field 'text' in "
            f"each record, or plain text with a paragraph a line"
        )
    return Source("folder", file)


def check_tasks(names: Iterable[str], metadata: Mapping[str, Any]) -> None:
    """Check that the text can be found, if it is asked for, and read if it is in a file, before anything is loaded.

    Raises:
        ConfigurationError: it cannot.
    """
    if TASK in names:
        try:
            if resolve(metadata).file is not None:
                rows_of(metadata)
        except UserError as error:
            raise ConfigurationError([str(error)]) from error


def check_offline(names: Iterable[str], metadata: Mapping[str, Any]) -> None:
    """Where the hub is set offline, check that an earlier run has kept the text.

    Raises:
        UserError: it has not.
    """
    if TASK in names and resolve(metadata).file is None:
        import datasets

        if datasets.config.HF_HUB_OFFLINE:
            _of_hub()


def _of_hub() -> tuple[list[str], str]:
    import datasets

    path, configuration, split = HUB
    try:
        rows = datasets.load_dataset(path, configuration, split=split)
    except Exception as error:  # the hub's client raises dozens of types; all mean the same to the user
        raise UserError(
            f"{TASK}: {path} could not be fetched from the hub ({type(error).__name__}). Give a folder that holds the "
            f"text instead: data_dir=FOLDER in --model_args or --metadata, with one of {', '.join(FILES)} "
            f"(data_dir={demo.NAME}: the demo's)"
        ) from error
    return list(rows["text"]), f"hub:{path}/{configuration}/{split}"


def rows_of(metadata: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The rows of the text, and their provenance.

    Raises:
        UserError: no text, or no network.
    """
    source = resolve(metadata)
    if source.file is None:
        texts, name = _of_hub()
    elif source.name == demo.NAME:
        texts, name = [record["passage"] for _, record in read_records(source.file)], source.name
    else:
        texts, name = list(load_corpus(str(source.file)).texts), source.name
    rows = [row for text in texts if (row := text.strip()) and not _HEADING.fullmatch(row)]
    if not rows:
        raise UserError(f"{source.file or name} holds no text but headings")
    known: dict[str, Any] = {"source": name, "documents": len(rows), "sha256": sha256("\0".join(rows).encode())}
    return rows, known | ({} if source.file is None else {"file": str(source.file)})


def dataset(provenance: Any = None, **metadata: Any) -> dict[str, Any]:
    """`custom_dataset` of the task's YAML: `{"test": datasets.Dataset}` with `row`, `text` and `source`.

    Args:
        provenance: The empty dictionary in the task's own `metadata`, which is filled in.
        metadata: All model arguments, `--metadata`, and what else stands in the task's `metadata`.
    """
    import datasets

    rows, known = rows_of(metadata)
    if isinstance(provenance, dict):
        provenance.update(known)
    docs = [{"row": number, "text": row, "source": known["source"]} for number, row in enumerate(rows)]
    return {"test": datasets.Dataset.from_list(docs)}


# ------------------------------------------------------------------------------------------------------------- figures


def scored(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """`process_results`: (log-likelihood, bytes or words) of a row; with its number for the standard errors."""
    (found,) = results
    log = float(found[0] if isinstance(found, tuple | list) else found)  # a pair from lm-eval 0.5 on
    size = {"bits_per_byte": len(doc["text"].encode()), "word_perplexity": len(doc["text"].split())}
    figures: dict[str, Any] = {name: (log, count) for name, count in size.items()}
    return figures | {f"{name}_stderr": (doc["row"], log, count) for name, count in size.items()}


def _bits(sums: np.ndarray) -> np.ndarray:
    """(b, 2) sums of log-likelihoods and of bytes -> (b,) bits per byte."""
    bits: np.ndarray = -sums[:, 0] / sums[:, 1] / math.log(2)
    return bits


def _perplexity(sums: np.ndarray) -> np.ndarray:
    """(b, 2) sums of log-likelihoods and of words -> (b,) perplexities; infinite where that overflows."""
    with np.errstate(over="ignore"):
        found: np.ndarray = np.exp(-sums[:, 0] / sums[:, 1])
    return found


def bits_per_byte(items: Sequence[Sequence[float]]) -> float:
    """Bits per byte of all rows together. Items: (log-likelihood, bytes)."""
    return float(_bits(np.array(items, dtype=float).sum(axis=0, keepdims=True))[0])


def weighted_perplexity(items: Sequence[Sequence[float]]) -> float:
    """Perplexity per word of all rows together; infinite where it overflows. Items: (log-likelihood, words)."""
    return float(_perplexity(np.array(items, dtype=float).sum(axis=0, keepdims=True))[0])


def bits_per_byte_stderr(items: Sequence[Sequence[float]]) -> float:
    """Standard error of `bits_per_byte`, by a bootstrap over rows. Items: (row, log-likelihood, bytes)."""
    counts = np.array([item[1:] for item in items], dtype=float)
    return cluster_bootstrap([int(item[0]) for item in items], counts, _bits)


def weighted_perplexity_stderr(items: Sequence[Sequence[float]]) -> float:
    """Standard error of `weighted_perplexity`, by a bootstrap over rows. Items: (row, log-likelihood, words)."""
    counts = np.array([item[1:] for item in items], dtype=float)
    with np.errstate(invalid="ignore"):  # of infinite perplexities there is none
        return cluster_bootstrap([int(item[0]) for item in items], counts, _perplexity)


exact_requests.tell_tasks_their_model()


class PerplexityTask(ConfigurableTask):
    """The task: every token of a row counts and no other; scores nothing where the run was told to score nothing.

    Args:
        config: The task's YAML with the run's metadata.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Any:
        """As in the harness, of the row's own tokens."""
        return rolling.ask_whole(super().construct_requests(doc, ctx, **kwargs))

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """The document's metrics."""
        return {} if requests.predicts_only(self) else super().process_results(doc, results)
