"""Designs from YAML files, presets and flags: mappings with the keys of `Design`, checked as far as they allow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import read_yaml
from lm_eval_edit.demo import DEFAULT_FACTS
from lm_eval_edit.errors import ConfigurationError, UserError, nearest
from lm_eval_edit.sweep.design import ALL, LEAVE_OUT, REFUSE, Design, Method, Model, safe

PRESETS = Path(__file__).parent / "presets"


def _list(value: Any) -> list[Any]:
    """A list as users write it: a list, one value, or values separated by commas."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _some(value: Any) -> list[Any]:
    items = _list(value)
    if not items:
        raise ValueError("want at least one")
    return items


LARGEST = 2**63  # of a seed
MOST = 10_000_000


def _whole(value: Any, least: int, what: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d+", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"got {value!r}, want {what}")
    if value >= LARGEST:
        raise ValueError(f"got {value!r}, want {what}, below 2**63")
    return value


def _counts(value: Any) -> tuple[int, ...]:
    want = "whole numbers of at least 0"
    counts = sorted({_whole(item, 0, want) for item in _list(value)} - {0})
    if counts and counts[-1] > MOST:
        raise ValueError(f"got {counts[-1]}, want at most {MOST}: no set of facts is larger")
    if not counts:
        raise ValueError(f"got {value!r}, want {want}, one of them above 0")
    return tuple(counts)


def _seeds(value: Any) -> tuple[int | None, ...]:
    items = [None if item is None or str(item).lower() == "none" else item for item in _some(value)]
    return tuple(item if item is None else _whole(item, 0, "whole numbers of at least 0, or none") for item in items)


def _sizes(value: Any) -> tuple[int | str, ...]:
    items = _some(value)
    return tuple(ALL if item == ALL else _whole(item, 1, f"whole numbers of at least 1, or {ALL}") for item in items)


def _words(value: Any) -> tuple[str, ...]:
    words = _list(value)
    if not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"got {value!r}, want names")
    return tuple(words)


def _mapping(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"got {value!r}, want a mapping of names to values")
    return {str(name): item for name, item in value.items()}


def _entries(value: Any, key: str) -> list[dict[str, Any]]:
    """Entries given as a word each, or as a mapping with `key` and options."""
    out = []
    for given in [value] if isinstance(value, (str, Mapping)) else _some([] if value is None else value):
        entry: Any = given
        if isinstance(given, (str, Mapping)):
            entry = {key: given} if isinstance(given, str) else _mapping(given)
        if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
            raise ValueError(f"got {entry}, want a word, or a mapping with {key} and options")
        out.append(entry)
    return out


def _models(value: Any) -> tuple[Model, ...]:
    models = []
    for entry in _entries(value, "pretrained"):
        label = entry.pop("label", None) or Path(entry["pretrained"]).name
        models.append(Model(safe(str(label)), entry))
    return tuple(models)


def _methods(value: Any) -> tuple[Method, ...]:
    methods = []
    for entry in _entries(value, "editor"):
        sizes = entry.pop("edit_batch_size", None)
        options = [f"{name}_{value}" for name, value in entry.items() if name not in ("editor", "label")]
        label = entry.pop("label", None) or "-".join([entry["editor"], *options])
        methods.append(Method(safe(str(label)), entry, None if sizes is None else _sizes(sizes)))
    return tuple(methods)


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None or str(value).lower() == "none" else parse(value)


def _ratio(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 1 < number < float("inf"):
        raise ValueError(f"got {value!r}, want a number above 1: how many times the unedited model's perplexity")
    return number


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"got {value!r}, want true or false")
    return value


def _too_few(value: Any) -> str:
    if value not in (REFUSE, LEAVE_OUT):
        raise ValueError(f"got {value!r}, want {REFUSE} or {LEAVE_OUT}")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "name": lambda value: safe(str(value)),
    "description": str,
    "models": _models,
    "editors": _methods,
    "datasets": lambda value: tuple(_optional(str)(item) for item in _some(value)),
    "edit_seeds": _seeds,
    "edit_batch_size": _sizes,
    "n_edits": _optional(_counts),
    "n_operations": _optional(_counts),
    "tasks": _words,
    "limit": _optional(lambda value: _whole(value, 1, "a whole number of at least 1, or none")),
    "batch_size": lambda value: _whole(value, 1, "a whole number of at least 1 (a sweep does not search for one)"),
    "model_args": _mapping,
    "stop_at_perplexity": _optional(_ratio),
    "too_few_facts": _too_few,
    "log_samples": _truth,
    "include_path": _optional(str),
    "apply_chat_template": _truth,
    "figure": _mapping,
    "published": _mapping,
}
KEYS = tuple(f.name for f in fields(Design))
#: Options that a design says with keys of its own.
_ELSEWHERE = {
    "pretrained": "models",
    "editor": "editors",
    "edit_dataset": "datasets",
    "edit_seed": "edit_seeds",
    "n_edits": "n_edits",
    "edit_batch_size": "edit_batch_size",
    "batch_size": "batch_size",
    "device": "the command (--device): it is no part of the design",
    "edit_ledger": "the output folder, where every row keeps its ledger",
}


def parse_design(given: Mapping[str, Any], where: str) -> Design:
    """A design from a mapping.

    Args:
        given: Keys as in `Design`.
        where: The file or preset it was read from, for errors.

    Raises:
        ConfigurationError: every unknown key, wrong value and contradiction.
    """
    values: dict[str, Any] = {}
    problems = []
    for key, value in given.items():
        if key not in _READERS:
            problems.append(f"{where}: no such key: {key}.{nearest(str(key), KEYS)} Known are {', '.join(KEYS)}")
            continue
        try:
            values[key] = _READERS[key](value)
        except ValueError as error:
            problems.append(f"{where}: {key}: {error}")
    problems += [f"{where}: {key} is missing" for key in ("models", "editors") if key not in given]
    if (given.get("n_edits") is None) == (given.get("n_operations") is None):
        problems.append(f"{where}: give n_edits (how many facts) or n_operations (how many batches), one of them")
    problems += _misplaced(values, where)
    if problems:
        raise ConfigurationError(problems)
    values.setdefault("name", safe(Path(where).stem))
    design = Design(**values)
    if problems := _contradictions(design, where):
        raise ConfigurationError(problems)
    return design


def _misplaced(values: Mapping[str, Any], where: str) -> list[str]:
    """Options that stand where nobody would heed them."""
    places: list[tuple[str, tuple[str, ...], Mapping[str, Any]]]
    places = [("model_args", (), values.get("model_args") or {})]
    places += [(f"models: {model.label}", ("pretrained",), model.args) for model in values.get("models") or ()]
    places += [(f"editors: {method.label}", ("editor",), method.args) for method in values.get("editors") or ()]
    return [
        f"{where}: {place}: {key} belongs to {_ELSEWHERE[key]}"
        for place, its_own, args in places
        for key in args
        if key in _ELSEWHERE and key not in its_own
    ]


def _contradictions(design: Design, where: str) -> list[str]:
    problems = []
    labels = [model.label for model in design.models]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(f"{where}: several models are called {', '.join(twice)}; give each a label")
    for method in design.editors:
        if method.editor.lower() == "none":
            problems.append(f"{where}: editors: none is no editor; the unedited model is always evaluated")
        sizes = method.edit_batch_size or design.edit_batch_size
        if design.n_operations and ALL in sizes:
            problems.append(f"{where}: edit_batch_size: {ALL} is one operation; give n_edits instead of n_operations")
        for size in sizes:
            if design.n_edits and size != ALL:
                inside = [n for n in design.n_edits[:-1] if n % int(size)]
                if inside:
                    problems.append(
                        f"{where}: n_edits: {', '.join(map(str, inside))} end within a batch of {size}; "
                        f"give multiples of edit_batch_size"
                    )
    if not problems:
        names = [(row.model.label, row.name) for row in design.rows()]
        same = sorted({name for name in names if names.count(name) > 1})
        problems += [f"{where}: several rows are called {model}/{name}; give editors labels" for model, name in same]
    return problems


def preset_names() -> list[str]:
    """The designs that come with the package."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def read_design(source: str | Path, changes: Mapping[str, Any]) -> Design:
    """A design from a preset or a YAML file.

    Args:
        source: A preset's name, or a file.
        changes: Keys that replace the file's.

    Raises:
        UserError: neither a preset nor a file, or no YAML mapping.
        ConfigurationError: as `parse_design`.
    """
    name, path = str(source), Path(source)
    if name in preset_names():
        path = PRESETS / f"{name}.yaml"
    elif not path.is_file():
        near = nearest(name, preset_names())
        raise UserError(
            f"{name}: no such file, and no preset.{near} Presets are {', '.join(preset_names())} "
            f"(`lm-eval-edit ls presets`)"
        )
    given = read_yaml(path, unique_keys=True)
    if not isinstance(given, Mapping):
        raise UserError(f"{path} is no design: want a mapping with the keys {', '.join(KEYS)}")
    return parse_design(replaced({"name": path.stem, **given}, changes), name)


def replaced(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the keys of `changes`, and of their model_args; checkpoints of one kind replace those of the other.

    A design given another model goes as far as there are facts that one's editors can edit.
    """
    given, changes = dict(given), dict(changes)
    if "model_args" in changes:
        changes["model_args"] = {**(given.get("model_args") or {}), **changes["model_args"]}
    if changes.keys() & {"n_edits", "n_operations"}:
        given.pop("n_edits", None)
        given.pop("n_operations", None)
    models = changes.get("models")
    if models is not None and given.get("models") != models:
        given.pop("published", None)  # the paper's values are of the paper's model
        if "models" in given:
            given["too_few_facts"] = LEAVE_OUT
        # The models that come with the package have facts of their own, and know hardly one of ZsRE.
        names = {entry["pretrained"] for entry in _entries(models, "pretrained")}
        if len(names) == 1 and names <= DEFAULT_FACTS.keys() and "datasets" not in changes:
            given["datasets"] = [DEFAULT_FACTS[names.pop()]]
    return given | changes
