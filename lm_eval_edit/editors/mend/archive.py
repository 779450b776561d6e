"""Trained MEND hypernetworks on disk: our safetensors files, and the torch pickles of EasyEdit and of MEND's authors.

A pickle can call any function of any module while it is read. The others' archives hold a pickled model configuration,
so that PyTorch's safe reader refuses them as they are. Here every global it does not know is replaced by an inert
stand-in: tensors and plain containers are built, and nothing named in the file is ever imported or called.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lm_eval_edit._support.files import load_tensors, parse_json, save_tensors
from lm_eval_edit.errors import UserError

FORMAT = "lm-eval-edit mend 1"
_ABOUT = "about"  # one entry: safetensors writes several in an order that changes from run to run


@dataclass(frozen=True)
class MendArchive:
    """What an archive holds.

    Attributes:
        tensors: `edit_lrs`, and the hypernetworks' tensors under names that begin with `mend.`.
        inner_params: The weights it edits; empty when the archive does not say.
        inner_loss: Whose loss it was trained with: "exact" or "easyedit".
        training: How it was trained, for our own archives.
    """

    tensors: dict[str, Tensor]
    inner_params: tuple[str, ...]
    inner_loss: str
    training: dict[str, Any] = field(default_factory=dict)


def save_archive(
    path: Path, tensors: Mapping[str, Tensor], inner_params: Sequence[str], training: Mapping[str, Any]
) -> None:
    """Write a hypernetwork's tensors, the names of its weights and how it was trained, as one safetensors file."""
    about = {"format": FORMAT, "inner_params": list(inner_params), "training": dict(training)}
    save_tensors(path, tensors, {_ABOUT: json.dumps(about)})


def not_a_file(path: Path) -> str:
    """What stands, or does not, where an archive was wanted."""
    return "a folder, where a file is wanted" if path.is_dir() else "no such file"


def load_archive(path: str | Path) -> MendArchive:
    """Read an archive of any of the three kinds.

    Raises:
        UserError: missing or damaged, not a MEND archive, or a pickle with something else where tensors belong.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"archive={path}: {not_a_file(path)}. {HOW_TO_GET_ONE}")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return _own(path)
    if head[:2] != b"PK":
        raise UserError(f"archive={path} is neither a safetensors file nor a torch.save archive (PyTorch 1.6 or later)")
    return _foreign(path)


HOW_TO_GET_ONE = (
    "MEND needs a trained hypernetwork: train one with `lm-eval-edit train mend --model_args pretrained=MODEL,"
    "edit_dataset=FACTS --output FILE` and give it as archive=FILE; EasyEdit's and the authors' archives work too"
)


def _own(path: Path) -> MendArchive:
    try:
        tensors = load_tensors(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ABOUT, "{}")
        about = parse_json(text, path)
    except UserError as error:
        raise UserError(f"archive={path} is damaged, or no archive of ours: {error}") from None
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise UserError(f"archive={path} is a safetensors file of format {found}; want {FORMAT!r}. {HOW_TO_GET_ONE}")
    names, training = about.get("inner_params"), about.get("training")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"archive={path} is damaged: its inner_params should be names of weights; got {names!r}")
    if not isinstance(training, dict):
        raise UserError(f"archive={path} is damaged: how it was trained should be a mapping; got {training!r}")
    return MendArchive(tensors, tuple(names), "exact", training)


class _Inert:
    """Stands in for any object whose class must not be run: takes everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _foreign(path: Path) -> MendArchive:
    unknown: list[str] = []
    try:
        # Listing the names runs nothing. What PyTorch blocks outright (os, sys) stays blocked by its reader.
        unknown = get_unsafe_globals_in_checkpoint(path)
        with safe_globals([(_Inert, name) for name in unknown]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, LookupError, TypeError):
        # PyTorch's own message advises to read the file without protection: it is not handed on.
        names = f"; it names {', '.join(unknown[:4])}" if unknown else ""
        raise UserError(
            f"archive={path} is refused: it is damaged, or holds more than tensors and a configuration{names}. "
            f"Nothing in it has been run"
        ) from None
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping):
        raise UserError(f"archive={path} is no MEND archive: it has no state dict under 'model'")
    original = any(str(name).startswith("gtn.") for name in model)
    prefix = "gtn." if original else "mend."
    needed = {
        "mend." + name.removeprefix(prefix) if name.startswith(prefix) else name: value
        for name, value in model.items()
        if isinstance(name, str) and (name.startswith(prefix) or name == "edit_lrs")
    }
    if "edit_lrs" not in needed or len(needed) < 2:
        found = ", ".join(map(str, list(model)[:4])) or "nothing"
        raise UserError(f"archive={path} is no MEND archive: it has no edit_lrs and {prefix}* entries, but {found}")
    wrong = [name for name, value in needed.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(f"archive={path} is refused: {', '.join(wrong[:4])} should be tensors and are not")
    # EasyEdit trains on padded target ids as they are; MEND's authors mask the padding.
    return MendArchive(needed, (), "exact" if original else "easyedit")
