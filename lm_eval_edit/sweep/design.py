"""What a sweep is: models x editors x data sets x edit seeds x batch sizes x checkpoints, on some tasks.

A design is a YAML mapping with the keys of `Design` (a preset is one), or the same from flags. It is checked here as
far as it can be without looking at models and data; `checking` does the rest.

A row is one model with one schedule of edits, its cells are the schedule's checkpoints. Rows that edit in sequence are
nested: the state at 5 edits is a prefix of the state at 20, so the edits are made once. Rows that edit all facts of a
checkpoint in one batch (`edit_batch_size: all`) share nothing; each of their cells starts from the unedited model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lm_eval_edit._files import read_text
from lm_eval_edit.errors import ConfigurationError, UserError, nearest

ALL = "all"  # as edit_batch_size: the facts of a checkpoint in one operation
_LABEL = re.compile(r"[^\w.+-]+")  # what no folder's name should hold


def safe(text: str) -> str:
    """`text` as part of a folder's name."""
    return _LABEL.sub("_", text).strip("_") or "_"


@dataclass(frozen=True)
class Model:
    """One model of a sweep.

    Attributes:
        label: Its folder's name.
        args: What `--model_args` would say about loading it; `pretrained` first.
    """

    label: str
    args: Mapping[str, Any]

    @property
    def pretrained(self) -> str:
        """A path, a hub id, or `demo`."""
        return str(self.args["pretrained"])


@dataclass(frozen=True)
class Method:
    """One editor of a sweep with its hyper-parameters.

    Attributes:
        label: Part of its rows' names.
        args: `editor` and its options, as `--model_args` would say them.
        edit_batch_size: Batch sizes of its own, instead of the sweep's.
    """

    label: str
    args: Mapping[str, Any]
    edit_batch_size: tuple[int | str, ...] | None = None

    @property
    def editor(self) -> str:
        """The method's name."""
        return str(self.args["editor"])


@dataclass(frozen=True)
class Row:
    """One model with one schedule of edits.

    Attributes:
        name: Its folder's name below its model's.
        edit_batch_size: Facts per operation; `all` for one operation with all facts of a checkpoint.
        checkpoints: Numbers of edits, ascending, without 0.
    """

    name: str
    model: Model
    method: Method
    dataset: str | None
    edit_seed: int | None
    edit_batch_size: int | str
    checkpoints: tuple[int, ...]

    @property
    def at_once(self) -> bool:
        """Whether each checkpoint is one batch of its own, made on the unedited model."""
        return self.edit_batch_size == ALL

    def operations(self, n_edits: int) -> int:
        """How many operations make `n_edits` edits in this row."""
        return min(1, n_edits) if self.at_once else -(-n_edits // int(self.edit_batch_size))

    def schedules(self) -> list[tuple[int, ...]]:
        """The checkpoints that share edits, together: all of them in a sequence, each alone at once."""
        return [(n,) for n in self.checkpoints] if self.at_once else [self.checkpoints]

    def edit_args(self, n_edits: int) -> dict[str, Any]:
        """What `--model_args` would say about this row's edits, `n_edits` of them."""
        schedule = {
            "n_edits": n_edits,
            "edit_batch_size": max(n_edits, 1) if self.at_once else self.edit_batch_size,
            "edit_seed": self.edit_seed,
        }
        return {**self.method.args, **schedule} | ({"edit_dataset": self.dataset} if self.dataset else {})


@dataclass(frozen=True)
class Design:
    """A sweep.

    Attributes:
        name: A word for titles and folders.
        description: A sentence.
        models, editors, datasets, edit_seeds, edit_batch_size: The axes of the rows. A data set of None is the model's
            default: demo for the demo model, zsre for any other.
        n_edits: Checkpoints as numbers of edits, ascending, without 0; the unedited model is always evaluated.
        n_operations: Checkpoints as numbers of operations instead: times edit_batch_size.
        tasks: Names of tasks and groups.
        limit: Documents per task; None for all.
        batch_size: Prompts evaluated at a time.
        model_args: What holds for every row: data_dir, dtype, hyper-parameters of all editors.
        stop_at_perplexity: A row is stopped once the perplexity of a fixed text is this many times the unedited
            model's; its other cells are marked collapsed. None: only weights that are not finite stop a row.
        log_samples: Whether cells keep what the model answered; `compare` and `report` need it.
        include_path: A folder with task files of the user's own.
        figure: What figure of the paper this is, for plots: number, panel.
        published: The paper's values, for plots: metric, source, n_edits, tasks.
    """

    name: str
    models: tuple[Model, ...]
    editors: tuple[Method, ...]
    n_edits: tuple[int, ...] | None = None
    n_operations: tuple[int, ...] | None = None
    description: str = ""
    datasets: tuple[str | None, ...] = (None,)
    edit_seeds: tuple[int | None, ...] = (0,)
    edit_batch_size: tuple[int | str, ...] = (1,)
    tasks: tuple[str, ...] = ("edithurt_suite",)
    limit: int | None = None
    batch_size: int = 32
    model_args: Mapping[str, Any] = field(default_factory=dict)
    stop_at_perplexity: float | None = None
    log_samples: bool = True
    include_path: str | None = None
    figure: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """Every row, in the order model, data set, editor, batch size, seed."""
        rows = []
        for model in self.models:
            for dataset in self.datasets:
                for method in self.editors:
                    for size in method.edit_batch_size or self.edit_batch_size:
                        counts = self.n_edits or tuple(n * int(size) for n in self.n_operations or ())
                        for seed in self.edit_seeds:
                            name = self._row_name(model, method, dataset, size, seed)
                            rows.append(Row(name, model, method, dataset, seed, size, counts))
        return rows

    def _row_name(self, model: Model, method: Method, dataset: str | None, size: int | str, seed: int | None) -> str:
        data = dataset or ("demo" if model.pretrained == "demo" else "zsre")
        parts = [method.label, Path(data).stem, "file_order" if seed is None else f"seed{seed}"]
        if size != 1:
            parts.append("at_once" if size == ALL else f"batch{size}")
        return "-".join(map(safe, parts))

    def identity(self) -> dict[str, Any]:
        """What two designs must have in common to share a folder, as JSON-able values."""
        content = asdict(self)
        for word in ("name", "description", "figure", "published"):
            del content[word]
        return content


# ------------------------------------------------------------------------------------------------------------ reading


def _list(value: Any) -> list[Any]:
    """A list as users write it: a list, one value, or values separated by commas."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _whole(value: Any, least: int, what: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d+", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"got {value!r}, want {what}")
    return value


def _counts(value: Any) -> tuple[int, ...]:
    want = "whole numbers of at least 0"
    counts = sorted({_whole(item, 0, want) for item in _list(value)} - {0})
    if not counts:
        raise ValueError(f"got {value!r}, want {want}, one of them above 0")
    return tuple(counts)


def _seeds(value: Any) -> tuple[int | None, ...]:
    items = [None if item is None or str(item).lower() == "none" else item for item in _list(value)]
    return tuple(item if item is None else _whole(item, 0, "whole numbers of at least 0, or none") for item in items)


def _sizes(value: Any) -> tuple[int | str, ...]:
    items = _list(value)
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
    entries = [value] if isinstance(value, (str, Mapping)) else list(value or ())
    if not entries:
        raise ValueError("want at least one")
    out = []
    for entry in entries:
        entry = {key: entry} if isinstance(entry, str) else _mapping(entry)
        if not isinstance(entry.get(key), str):
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


_READERS: dict[str, Callable[[Any], Any]] = {
    "name": lambda value: safe(str(value)),
    "description": str,
    "models": _models,
    "editors": _methods,
    "datasets": lambda value: tuple(_optional(str)(item) for item in _list(value)),
    "edit_seeds": _seeds,
    "edit_batch_size": _sizes,
    "n_edits": _optional(_counts),
    "n_operations": _optional(_counts),
    "tasks": _words,
    "limit": _optional(lambda value: _whole(value, 1, "a whole number of at least 1, or none")),
    "batch_size": lambda value: _whole(value, 1, "a whole number of at least 1 (a sweep does not search for one)"),
    "model_args": _mapping,
    "stop_at_perplexity": _optional(_ratio),
    "log_samples": _truth,
    "include_path": _optional(str),
    "figure": _mapping,
    "published": _mapping,
}
KEYS = tuple(f.name for f in fields(Design))
#: model_args that a design says with keys of its own.
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
    for key, instead in _ELSEWHERE.items():
        if key in (values.get("model_args") or {}):
            problems.append(f"{where}: model_args.{key} belongs to {instead}")
    if problems:
        raise ConfigurationError(problems)
    values.setdefault("name", safe(Path(where).stem))
    design = Design(**values)
    if problems := _contradictions(design, where):
        raise ConfigurationError(problems)
    return design


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
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [f"{where}: several rows are called {model}/{name}; give editors labels" for model, name in twice]
    return problems


# ------------------------------------------------------------------------------------------------------------ presets

PRESETS = Path(__file__).parent / "presets"


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
    try:
        given = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(given, Mapping):
        raise UserError(f"{path} is no design: want a mapping with the keys {', '.join(KEYS)}")
    return parse_design(replaced({"name": path.stem, **given}, changes), name)


def replaced(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the keys of `changes`; checkpoints of one kind replace those of the other."""
    given = dict(given)
    if changes.keys() & {"n_edits", "n_operations"}:
        given.pop("n_edits", None), given.pop("n_operations", None)
    models = changes.get("models")
    if models is not None and given.get("models") != models:
        given.pop("published", None)  # the paper's values are of the paper's model
        # The demo model knows no fact of ZsRE.
        if _list(models) == ["demo"] and "datasets" not in changes:
            given["datasets"] = ["demo"]
    return given | dict(changes)


def as_words(values: Sequence[Any]) -> str:
    """Numbers for a sentence."""
    return ", ".join("none" if value is None else str(value) for value in values)
