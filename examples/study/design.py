"""study.yaml as values: what each part of a form sweeps, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import hash_json, read_yaml
from lm_eval_edit.errors import UserError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILE = HERE / "study.yaml"
RESULTS = HERE / "results"
TRAINED = "trained"


@dataclass(frozen=True)
class Work:
    """The folder that a form is run in.

    Attributes:
        folder: All of it; safe to delete once the cells are collected.
    """

    folder: Path

    @property
    def data(self) -> Path:
        """The documents of each task, and the text."""
        return self.folder / "data"

    @property
    def facts(self) -> Path:
        """The facts that are edited."""
        return self.folder / "counterfact.jsonl"

    @property
    def training_facts(self) -> Path:
        """Other facts, for MEND's training."""
        return self.folder / "training_facts.jsonl"

    @property
    def archive(self) -> Path:
        """MEND's hypernetwork."""
        return self.folder / "mend.safetensors"

    def sweep(self, part: str, seed: int) -> Path:
        """The folder of one sweep."""
        return self.folder / f"{part}-seed{seed}"


@dataclass(frozen=True)
class Form:
    """One form of the study.

    Attributes:
        name: reduced or full.
        study: What both forms share: model, model_args, methods.
        numbers: What this one says.
    """

    name: str
    study: Mapping[str, Any]
    numbers: Mapping[str, Any]

    @property
    def parts(self) -> dict[str, Mapping[str, Any]]:
        """The sweeps, by name."""
        return dict(self.numbers["parts"])

    @property
    def seeds(self) -> list[int]:
        """Each draws other facts."""
        return list(self.numbers["edit_seeds"])

    @property
    def sweeps(self) -> list[tuple[str, int]]:
        """Every (part, seed), in the file's order: each is a sweep of its own, so that two can run at once."""
        return [(part, seed) for part in self.parts for seed in self.seeds]

    def labels(self, part: str) -> list[str]:
        """The methods of a part."""
        without = self.parts[part].get("without") or ()
        return [label for label in self.parts[part].get("methods") or self.study["methods"] if label not in without]

    def trained(self, part: str) -> bool:
        """Whether a part needs the hypernetwork."""
        return any(self.study["methods"][label].get("archive") == TRAINED for label in self.labels(part))

    def controls(self, labels: Sequence[str]) -> list[str]:
        """Those that imitate another method's update instead of writing anything."""
        return [label for label in labels if "like" in self.study["methods"][label]]

    def bases(self, labels: Sequence[str]) -> list[str]:
        """Those that are neither a control nor a variant: of the ones that build on the same editor only the first."""
        found: dict[str, str] = {}
        for label in labels:
            method = self.study["methods"][label]
            if "like" not in method:
                found.setdefault(method.get("over") or method["editor"], label)
        return list(found.values())

    def editors(self, labels: Sequence[str]) -> list[str]:
        """The package's methods that they are, the controls apart."""
        without = set(self.controls(labels))
        return list(dict.fromkeys(self.study["methods"][label]["editor"] for label in labels if label not in without))

    def variants(self, labels: Sequence[str]) -> list[str]:
        """Those that are a method of the package which an earlier one is already, with other options."""
        found: dict[str, str] = {}
        for label in labels:
            found.setdefault(self.study["methods"][label]["editor"], label)
        without = {*found.values(), *self.controls(labels)}
        return [label for label in labels if label not in without]

    def method(self, label: str, work: Work) -> dict[str, Any]:
        """A method as a sweep's design takes it."""
        given = {**self.study["methods"][label], **(self.numbers.get("of_methods") or {}).get(label, {})}
        contexts, kind = self.numbers["contexts"], given.pop("contexts", None)
        if contexts and kind:
            given["context_templates"] = ["{}", *contexts] if kind == "flat" else [["{}"], list(contexts)]
        if given.get("archive") == TRAINED:
            given["archive"] = str(work.archive)
        return {**given, "label": label}

    def sweep_design(self, part: str, seed: int, work: Work, data: str | None) -> dict[str, Any]:
        """The design of one sweep, as `lm-eval-edit sweep` reads it.

        Args:
            data: The folder of the public data; None for the hub.
        """
        numbers = self.numbers
        args = {**self.study["model_args"], "items": numbers["items"]}
        args |= {"edit_corpus": corpus(data), "edit_corpus_tokens": numbers["moments"]["tokens"]}
        if numbers["documents"] is not None:
            args["data_dir"] = str(work.data)
        elif data is not None:
            args["data_dir"] = data
        return {
            "name": f"{self.study['name']}-{self.name}-{part}",
            "models": [self.study["model"]],
            "editors": [self.method(label, work) for label in self.labels(part)],
            "datasets": [str(work.facts)],
            "edit_seeds": [seed],
            "edit_batch_size": 1,
            "n_edits": list(self.parts[part]["n_edits"]),
            "tasks": list(self.parts[part]["tasks"]),
            "batch_size": numbers["batch_size"],
            "model_args": args,
        }

    @property
    def identity(self) -> str:
        """A hash of all that its figures depend on, but for the data."""
        return hash_json({"study": dict(self.study), "numbers": dict(self.numbers)})


def corpus(data: str | None) -> str:
    """The text for second moments and perplexity."""
    return "wikitext" if data is None else str(Path(data) / "corpus.txt")


def form(name: str, file: Path = FILE) -> Form:
    """A form of a study.

    Raises:
        UserError: there is no such form.
    """
    content = dict(read_yaml(file, unique_keys=True))
    forms = content.pop("forms")
    if name not in forms:
        raise UserError(f"{file.name} has no form {name}; it has {', '.join(forms)}")
    return Form(name, content, forms[name])
