"""`ledger.json`: what the operations of a ledger belong to, read and checked; `ledger` says what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from lm_eval_edit._support.files import read_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.weights.fingerprint import NEWEST, hash_named

FORMAT = 1
#: What `extra` may hold and others read; None where it is not known.
_EXTRA = {
    "model": (dict, NoneType), "editor_class": (str, NoneType), "context_templates": (list, NoneType),
    "second_moments_source": (str, NoneType), "versions": (dict, NoneType), "chat": (dict, NoneType),
}  # fmt: skip
#: What of the model's origin it is loaded again by; the rest (`source.describe_source`) is told and never used.
_LOADED_BY = ("pretrained", "revision", "dtype", "gguf_file")


def read_header(directory: Path) -> dict[str, Any] | None:
    """`ledger.json` of a folder, or None when the folder is absent or empty.

    Raises:
        UserError: the folder holds other things, or a ledger of another format, or of a hash that is not known.
    """
    file = directory / "ledger.json"
    if not file.exists():
        # A run killed while it wrote its first file leaves a temporary one, which is nobody's data.
        if directory.exists() and (
            not directory.is_dir() or any(not found.name.startswith(".") for found in directory.iterdir())
        ):
            raise UserError(
                f"edit_ledger={directory} is not a ledger (no ledger.json in it) and not empty; give a new folder"
            )
        return None
    header = read_json(file)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise UserError(f"{file} has ledger format {found}; this version of lm-eval-edit reads format {FORMAT}")
    lacking = [name for name in ("identity", "extra") if not isinstance(header.get(name), dict)]
    if lacking:
        raise UserError(
            f"{file} is damaged (no {' and no '.join(lacking)}), so nobody knows what its operations belong to; "
            f"nothing was changed. Give another folder"
        )
    extra = header["extra"]
    wrong = [name for name, kind in _EXTRA.items() if name in extra and not isinstance(extra[name], kind)]
    wrong += [name for name in ("context_templates", "second_moments_source") if name not in extra]
    model = extra.get("model") or {}
    if not wrong and not all(isinstance(model.get(name), (str, NoneType)) for name in _LOADED_BY):
        wrong = ["model"]
    if wrong:
        raise UserError(
            f"{file} is damaged (extra: {', '.join(wrong)}: absent, or not of the kind that is written there); "
            f"nothing was changed. Give another folder"
        )
    try:
        hash_named(_weights_of(header))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return header


def mismatch(directory: Path | None, found: Sequence[str]) -> UserError:
    """The error for a ledger that belongs to something else."""
    return UserError(
        f"edit_ledger={directory} belongs to another run:\n"
        + "\n".join(f"    {line}" for line in found)
        + "\n  Give the options it was made with, or another folder; nothing in it was changed"
    )


def hash_of_ledger(directory: Path | None) -> str:
    """The hash of a ledger's fingerprints: its own where the folder holds one, else that of new ones.

    Raises:
        As `read_header`.
    """
    header = read_header(directory) if directory is not None else None
    if header is None:
        return NEWEST
    return hash_named(_weights_of(header))


def _weights_of(header: Mapping[str, Any]) -> Mapping[str, Any]:
    described = header["identity"].get("model")
    return described if isinstance(described, Mapping) else {}
