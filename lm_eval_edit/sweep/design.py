"""What a sweep is: models x editors x data sets x edit seeds x batch sizes x checkpoints, on some tasks.

Values only. `parsing` makes them of YAML or flags and refuses what contradicts itself; `checking` looks at models and
data.

A row is one model with one schedule of edits, its cells are the schedule's checkpoints. Rows that edit in sequence are
nested: the state at 5 edits is a prefix of the state at 20, so the edits are made once. Rows that edit all facts of a
checkpoint in one batch (`edit_batch_size: all`) share nothing; each of their cells starts from the unedited model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_edit import demo

REFUSE, LEAVE_OUT = "refuse", "leave_out"
ALL = "all"  # as edit_batch_size: the facts of a checkpoint in one operation
_LABEL = re.compile(r"[^\w.+-]+")  # what no folder's name should hold


def is_plain(name: Any) -> bool:
    """Whether a name out of a file may be one folder's or part of a file's name: no way up, down or elsewhere."""
    return isinstance(name, str) and name.isprintable() and not {"/", "\\"} & set(name) and name.strip(". ") != ""


def safe(text: str) -> str:
    """`text` as part of a folder's name."""
    return _LABEL.sub("_", text).strip("_.") or "_"  # no dots around it: ".." is a folder of its own


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
        """A path, a hub id, `demo` or `smollm2`."""
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
        left_out: Checkpoints of the design that this row cannot reach -> why.
    """

    name: str
    model: Model
    method: Method
    dataset: str | None
    edit_seed: int | None
    edit_batch_size: int | str
    checkpoints: tuple[int, ...]
    left_out: Mapping[int, str] = field(default_factory=dict)

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
            default: demo for the demo model, known_facts for smollm2, zsre for any other.
        n_edits: Checkpoints as numbers of edits, ascending, without 0; the unedited model is always evaluated.
        n_operations: Checkpoints as numbers of operations instead: times edit_batch_size.
        tasks: Names of tasks and groups.
        limit: Documents per task; None for all.
        batch_size: Prompts evaluated at a time.
        model_args: What holds for every row: data_dir, dtype, hyper-parameters of all editors.
        stop_at_perplexity: A row is stopped once the perplexity of a fixed text is this many times the unedited
            model's; its other cells are marked collapsed. None: only weights that are not finite stop a row.
        too_few_facts: What happens to checkpoints beyond the usable facts: refuse the design, or leave_out those.
        log_samples: Whether cells keep what the model answered; `compare` and `report` need it.
        include_path: A folder with task files of the user's own.
        apply_chat_template: Whether everything is asked inside the models' chat templates.
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
    too_few_facts: str = REFUSE
    log_samples: bool = True
    include_path: str | None = None
    apply_chat_template: bool = False
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
        data = dataset or demo.DEFAULT_FACTS.get(model.pretrained, "zsre")
        parts = [method.label, Path(data).stem, "file_order" if seed is None else f"seed{seed}"]
        if size != 1:
            parts.append("at_once" if size == ALL else f"batch{size}")
        return "-".join(map(safe, parts))

    def identity(self) -> dict[str, Any]:
        """What two designs must have in common to share a folder, as JSON-able values."""
        content = asdict(self)
        for word in ("name", "description", "figure", "published"):
            del content[word]
        if not self.apply_chat_template:  # there were folders before there was this key
            del content["apply_chat_template"]
        return content
