"""The edited model that a ledger stands for: which model, which prefix of its operations, which last correction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors.base import Editor, find_editor, option_names
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.named_by_data import names_out_of_data
from lm_eval_edit.edits.ledger import Ledger, read_header
from lm_eval_edit.edits.operations import Operation, read_operations
from lm_eval_edit.edits.source import load_source
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.edited import EditedWeights
from lm_eval_edit.weights.fingerprint import hash_named, model_fingerprint

Finish = Callable[[Mapping[str, tuple[Tensor, Tensor]]], dict[str, Delta]]


@dataclass(frozen=True)
class Selection:
    """A prefix of a ledger, read and checked without loading a model.

    Attributes:
        directory: The ledger's folder.
        header: Its `ledger.json`.
        operations: The operations chosen, first to last.
        source: `pretrained`, `revision` and `dtype` of the unedited model.
        editor_class: The editor.
        given: `module:Class` names of editors that the user has given.
    """

    directory: Path
    header: Mapping[str, Any]
    operations: tuple[Operation, ...]
    source: Mapping[str, Any]
    editor_class: type[Editor]
    given: tuple[str, ...] = ()

    @property
    def facts(self) -> list[Fact]:
        """The facts edited, first to last."""
        return [fact for operation in self.operations for fact in operation.facts]

    @property
    def editor(self) -> str:
        """The editor's name."""
        return self.header["identity"]["editor"]


def select(directory: Path, n_edits: int | None = None, editors: Sequence[str] = (), **source: str | None) -> Selection:
    """Choose the first `n_edits` facts of a ledger (default: all).

    Args:
        directory: A folder made by `edit_ledger=`.
        n_edits: A number of facts at which an operation ends.
        editors: `module:Class` of the editor, where no package registers it, and of one that it works on.
        source: `pretrained`, `revision`, `dtype`, where they are not those that the ledger recorded.

    Raises:
        ConfigurationError: with every problem.
    """
    header = read_header(directory) if directory.is_dir() else None
    if header is None:
        raise ConfigurationError(
            [f"{directory} is no ledger (no ledger.json in it); give a folder that edit_ledger= made"]
        )
    problems = []
    operations: list[Operation] = []
    ends: list[int] = []  # facts up to the end of each
    for operation in read_operations(directory, header):
        operations.append(operation)
        ends.append((ends[-1] if ends else 0) + len(operation.facts))
        if ends[-1] == n_edits:
            break
    if not operations:
        problems.append(f"{directory} holds no operation yet: nothing is edited")
    elif n_edits is not None and ends[-1] != n_edits:
        near = sorted(sorted(ends, key=lambda end: abs(end - n_edits))[:2])
        problems.append(
            f"n_edits={n_edits}: no operation of the ledger ends there; the nearest that do end at "
            f"{' and '.join(map(str, near))} facts ({ends[-1]} in all)"
        )
    found = dict(header["extra"].get("model") or {})
    found |= {name: value for name, value in source.items() if value is not None}
    if source.get("pretrained") is not None and source.get("revision") is None:
        found["revision"] = None  # the recorded one belongs to the recorded model
    if isinstance(found.get("pretrained"), str) and Path(found["pretrained"]).is_dir():
        found["pretrained"] = str(Path(found["pretrained"]).resolve())  # an export is read from anywhere
    if not found.get("pretrained"):
        problems.append(
            f"{directory} does not say which model it edits; give pretrained=FOLDER, a hub id, demo or smollm2"
        )
    editor_class = None
    try:
        editor_class = _editor_class(directory, header, editors)
        with names_out_of_data(editors):
            editor_class.wraps(header["identity"].get("options") or {})
    except UserError as error:
        problems.append(str(error))
    if problems or editor_class is None:
        raise ConfigurationError(problems)
    source = {name: found.get(name) for name in ("pretrained", "revision")} | {"dtype": found.get("dtype") or "auto"}
    source |= {"gguf_file": found["gguf_file"]} if found.get("gguf_file") else {}
    return Selection(directory, header, tuple(operations), source, editor_class, tuple(editors))


@dataclass
class Edited:
    """A loaded model and the operations chosen for it. It begins unedited.

    Attributes:
        selection: Which model and which operations.
        model: Its weights are as the last call left them.
        tokenizer: Its tokenizer.
        ledger: The operations on this model, with the editor's last correction.
        paper: The method's source.
    """

    selection: Selection
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ledger: Ledger
    paper: str

    def apply(self) -> None:
        """Bring the model to the edited state."""
        self.ledger.replay()
        self.ledger.compare_with_record()
        self.ledger.close()

    def restore(self) -> None:
        """Bring the model back to the unedited state, bit for bit."""
        self.ledger.restore()

    def deltas(self) -> Iterator[tuple[str, Delta]]:
        """(parameter, update) of every operation in order, then of the last correction that the model carries."""
        for operation in self.selection.operations:
            yield from operation.deltas.items()
            operation.release()
        yield from self.ledger.correction.items()

    def __post_init__(self) -> None:
        self.device = input_device(self.model)

    def release(self) -> None:
        """Let go of the model, to make room for another one: this object has none from then on."""
        for name in ("model", "ledger"):
            vars(self).pop(name, None)


def load(selection: Selection, device: str | None = None, trust_remote_code: bool = False) -> Edited:
    """Load the unedited model of a selection.

    Raises:
        UserError: it cannot be loaded, is not the model that was edited, or its editor cannot be made again.
    """
    source = selection.source
    model, tokenizer = load_source(**source, device=device, trust_remote_code=trust_remote_code)
    described = selection.header["identity"]["model"]
    wanted, found = described["fingerprint"], model_fingerprint(model, hash_named(described))
    if found != wanted:
        raise UserError(
            f"pretrained={source['pretrained']} ({str(model.dtype).removeprefix('torch.')}) is not the model that "
            f"{selection.directory} edits: its fingerprint is {found[:16]}…, the ledger's {wanted[:16]}…. Give the "
            f"pretrained, revision and dtype of the run that made the ledger"
        )
    cls = selection.editor_class
    ledger = Ledger(
        selection.header["identity"],
        selection.header["extra"],
        EditedWeights(model),
        list(selection.operations),
        selection.directory,
        finish=_finish(cls, selection, model.config),
    )
    return Edited(selection, model, tokenizer, ledger, cls.source)


def _finish(cls: type[Editor], selection: Selection, config: PretrainedConfig) -> Finish:
    """`Editor.finish` of the ledger's editor, which is made again only if it has one of its own."""
    if cls.finish is Editor.finish:
        return lambda weights: {}
    options = selection.header["identity"]["options"]
    with names_out_of_data(selection.given):
        accepted = option_names(cls, options)
        resolved, problems = resolve(cls, config, {name: value for name, value in options.items() if name in accepted})
    if resolved is None:
        raise UserError(
            f"the last correction of {selection.editor} needs the editor as it was, which cannot be made again: "
            f"{'; '.join(problems)}. Files are looked for where this command is started"
        )
    return resolved.editor.finish


def _editor_class(directory: Path, header: Mapping[str, Any], given: Sequence[str]) -> type[Editor]:
    """The ledger's editor: one of those given, else the one registered under its name. What the ledger names as its
    class is told, never imported: whoever wrote a ledger must not choose what runs here.

    Raises:
        UserError: no editor of that name is registered, the registered one is not the ledger's, or none of those given
            has its name.
    """
    name, recorded = str(header["identity"].get("editor")), str(header["extra"].get("editor_class") or "")
    for cls in map(find_editor, given):
        if cls.name == name:
            return cls
    if given:
        raise UserError(f"--editor {' '.join(given)}: the edits of {directory} were made by an editor called {name}")
    remedy = f"Give the class on the command line, --editor module:Class; the ledger says it was {recorded or name}"
    try:
        with names_out_of_data():
            found = find_editor(name)
    except UserError as error:
        raise UserError(f"{directory}: {error}. {remedy}, which is imported only if you name it") from None
    ours = recorded.startswith("lm_eval_edit.")  # a module of ours may have moved since
    if recorded and not ours and recorded != f"{found.__module__}:{found.__qualname__}":
        raise UserError(f"{directory}: its editor {name} is not the one registered under that name. {remedy}")
    return found


def touched(deltas: Sequence[str]) -> str:
    """Names for a message, the first three in full."""
    return ", ".join(deltas[:3]) + (f" and {len(deltas) - 3} more" if len(deltas) > 3 else "")
