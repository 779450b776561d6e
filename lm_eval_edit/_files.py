"""Files that are either whole or absent: atomic writes, hashes, JSON and YAML with errors that name the line."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_edit.errors import CannotWriteError, UserError

if TYPE_CHECKING:
    from torch import Tensor  # imported where it is used: comparing results needs files, but no tensors


def cache_folder() -> Path:
    """Where what is made once is kept: `LM_EVAL_EDIT_CACHE`, else lm_eval_edit in the user's cache folder (XDG)."""
    if given := os.environ.get("LM_EVAL_EDIT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lm_eval_edit"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a run after a crash, sees all of it or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A context in which a failure to write becomes an error that names the folder and the remedy.

    Raises:
        CannotWriteError: for any OSError.
    """
    try:
        yield
    except OSError as error:
        raise CannotWriteError(
            f"{folder} cannot be written: {error.strerror or error}. Free space or change its permissions and "
            f"run the same command again; it goes on where it stopped"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        UserError: the file is missing, or is not JSON (file and line named).
    """
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        UserError: the file is missing, is a folder, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; a file was wanted") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """Parse JSON text that starts at line `first_line` of `path`, so that an error names the right line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}, line {line}: not JSON ({error.msg} at column {error.colno})") from None


def read_yaml(path: Path) -> Any:
    """Read one YAML document (JSON is YAML too).

    Raises:
        UserError: the file is missing, or is not YAML (file and line named).
    """
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)})") from None


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a JSON array or of a JSONL file, each with a number a reader can look up.

    Yields:
        (number, record): for JSONL the line number, for an array the position counted from 1.

    Raises:
        UserError: missing file or broken JSON, naming file and line.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        yield from enumerate(parse_json(text, path), start=1)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, path, number)


def sha256(content: bytes) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_json(content: Any) -> str:
    """The sha256 of a JSON-able value, independent of key order."""
    return sha256(json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())


def hash_tensor(tensor: Tensor) -> str:
    """The sha256 of a tensor's bits (any dtype, any device)."""
    import torch

    return sha256(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file atomically, with texts in its header, and return the sha256 of its bytes."""
    import safetensors.torch

    held = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    content = safetensors.torch.save(held, dict(metadata) if metadata else None)
    write_bytes(path, content)
    return sha256(content)


def load_tensors(path: Path, expected_sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        UserError: missing, not safetensors, or not the file with the expected sha256.
    """
    import safetensors.torch

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    if expected_sha256 is not None and (found := sha256(content)) != expected_sha256:
        raise UserError(f"{path} is damaged: its sha256 is {found[:16]}…, recorded was {expected_sha256[:16]}…")
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # safetensors raises its own untyped SafetensorError
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
