"""Updates in a file, and as tensors with names: what a ledger stores of an operation and processes send each other.

Also what a script of release 0.1 finds in `lm_eval_edit.delta`, where the kinds of updates and their files were one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
from torch import Tensor

from lm_eval_edit._support.files import load_tensors, save_tensors
from lm_eval_edit.errors import UserError
from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta, MaskedDelta, SparseDelta, linear_update
from lm_eval_edit.weights.stacked import SlicesDelta, StackedDelta

__all__ = [
    "KINDS", "Delta", "DenseDelta", "LowRankDelta", "MaskedDelta", "SlicesDelta", "SparseDelta", "StackedDelta",
    "flatten_deltas", "kinds", "linear_update", "load_deltas", "load_state", "save_deltas", "state_names",
    "unflatten_deltas",
]  # fmt: skip

KINDS: dict[str, type[Delta]] = {
    cls.kind: cls for cls in (LowRankDelta, SparseDelta, MaskedDelta, DenseDelta, StackedDelta, SlicesDelta)
}


def flatten_deltas(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """The deltas' tensors, named `<kind>:<field>:<parameter>`; `unflatten_deltas` gives the deltas back."""
    return {
        f"{delta.kind}:{field}:{parameter}": tensor
        for parameter, delta in deltas.items()
        for field, tensor in delta.tensors().items()
    }


def unflatten_deltas(tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    """Parameter name to delta, from what `flatten_deltas` made."""
    fields: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, field, name = key.split(":", 2)
        fields.setdefault((kind, name), {})[field] = tensor
    return {name: KINDS[kind](**found) for (kind, name), found in fields.items()}


_STATE = "state::"


def save_deltas(path: Path, deltas: Mapping[str, Delta], state: Mapping[str, Tensor] | None = None) -> str:
    """Write deltas (and an editor's accumulated state) to one safetensors file, atomically.

    Tensors are named `<kind>:<field>:<parameter>` and `state::<name>`.

    Returns:
        The sha256 of the file's bytes.
    """
    return save_tensors(path, flatten_deltas(deltas) | {_STATE + k: tensor for k, tensor in (state or {}).items()})


def state_names(path: Path) -> list[str]:
    """Names of what a file that `save_deltas` wrote holds of an editor's state, from its header alone.

    Raises:
        UserError: the file is missing or damaged.
    """
    return [name.removeprefix(_STATE) for name in _names(path) if name.startswith(_STATE)]


def _names(path: Path) -> list[str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return list(file.keys())
    except Exception as error:  # safetensors raises its own untyped SafetensorError
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def kinds(path: Path) -> dict[str, type[Delta]]:
    """Parameter name to the kind of its update in a file that `save_deltas` wrote, from its header alone.

    Raises:
        UserError: the file is missing or damaged.
    """
    names = [name for name in _names(path) if not name.startswith(_STATE)]
    try:
        return {parameter: KINDS[kind] for kind, _, parameter in (name.split(":", 2) for name in names)}
    except (ValueError, LookupError):
        raise _others(path, names) from None


def load_state(path: Path, name: str) -> Tensor:
    """One tensor of an editor's state, without reading the rest of the file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            found: Tensor = file.get_tensor(_STATE + name)
    except Exception as error:  # safetensors raises its own untyped SafetensorError
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    return found.clone()  # not a window into a file that may be replaced


def load_deltas(path: Path, sha256: str | None = None) -> tuple[dict[str, Delta], dict[str, Tensor]]:
    """Read what `save_deltas` wrote: ({parameter: Delta}, {state name: tensor}).

    Raises:
        UserError: the file is missing, damaged or does not have the given sha256.
    """
    flat = load_tensors(path, sha256)
    state = {key.removeprefix(_STATE): flat.pop(key) for key in list(flat) if key.startswith(_STATE)}
    try:
        return unflatten_deltas(flat), state
    except (ValueError, LookupError, TypeError):
        raise _others(path, flat) from None


def _others(path: Path, names: Iterable[str]) -> UserError:
    return UserError(f"{path} holds other tensors than updates do: {', '.join(list(names)[:3])}")
