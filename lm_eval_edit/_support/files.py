"""Files and folders that are either whole or absent: atomic writes, hashes, JSON and YAML; errors name the line."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
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


class _FileError(CannotWriteError):
    """One file cannot be written; `writing` says what it belongs to."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a run after a crash, sees all of it or none of it.

    What is no file (/dev/stdout, a pipe) is written to, never replaced.

    Raises:
        CannotWriteError: the disk is full, a folder is where the file would be, permission is denied, ...
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if Path(os.path.abspath(path)).parts[:2] in (("/", "dev"), ("/", "proc")) or (
            path.exists() and not path.is_file()
        ):
            with path.open("wb") as file:
                file.write(content)
        else:
            _replace(path, content)
    except OSError as error:
        raise _FileError(f"{path} cannot be written: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
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
        if isinstance(error, CannotWriteError) and not isinstance(error, _FileError):
            raise
        cause = error.__cause__ if isinstance(error, _FileError) else error
        why = getattr(cause, "strerror", None) or cause
        raise CannotWriteError(
            f"{folder} cannot be written: {why}. Free space or change its permissions and "
            f"run the same command again; it goes on where it stopped"
        ) from error


def not_empty(folder: Path) -> str | None:
    """Why nothing new can be put there, as a sentence; None for a folder that is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return f"{folder} exists and is not an empty folder; give a new one, nothing is overwritten"
    return None


def publish(folder: Path, write: Callable[[Path], None], verify: Callable[[Path], None] = lambda filled: None) -> None:
    """Fill a folder beside `folder`, verify it, and only then move it there; on any error nothing is left behind.

    Args:
        folder: Absent or empty, see `not_empty`.
        write, verify: What fills a folder and what refuses it, by an error.

    Raises:
        CannotWriteError: the disk is full, the folder cannot be made, or something is in it by now.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with writing(folder):
            write(temporary)
        verify(temporary)
        with writing(folder):
            temporary.chmod(0o755)
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given; half a surrogate pair is written as JSON's escape."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        UserError: the file is missing, or is not JSON (file and line named).
    """
    return parse_json(read_text(path), path)


#: Byte order marks of other encodings, longer ones first: UTF-16's are the beginning of UTF-32's.
_OTHER_MARKS = (
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
_COMPRESSED = {"gzip": (b"\x1f\x8b", "gunzip"), "zip": (b"PK\x03\x04", "unzip"), "xz": (b"\xfd7zXZ", "unxz")}


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, without the byte order mark that programs of Windows put in front.

    Raises:
        UserError: the file is missing, is a folder, or is not UTF-8 (line named).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; a file was wanted") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    for name, mark in _OTHER_MARKS:
        if content.startswith(mark):
            raise UserError(f"{path} is {name} text, not UTF-8; save it as UTF-8 (iconv -f {name} -t UTF-8 does)")
    for name, (mark, program) in _COMPRESSED.items():
        if content.startswith(mark):
            raise UserError(f"{path} is compressed ({name}); unpack it first ({program} does)")
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()  # line ends as in a text file
    except UnicodeDecodeError:
        raise _no_utf8(path, content) from None


def _no_utf8(path: Path, content: bytes) -> UserError:
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            where = f"{error.reason} at byte {error.start + 1} of the line"
            return UserError(f"{path}, line {number}: not UTF-8 text ({where}); save the file as UTF-8")
    return UserError(f"{path} is not UTF-8 text; save it as UTF-8")


DEEPEST = 100  # lists and mappings within each other; nothing that is read here comes near it
_TOO_DEEP = f"lists and mappings lie more than {DEEPEST} deep within each other; nothing that is read here needs that"
_FEW_NODES = 10_000  # what aliases may make of a YAML document, whatever its size


def parse_json(
    text: str, path: Path, first_line: int = 1, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Parse JSON text that starts at line `first_line` of `path`, so that an error names the right line.

    Args:
        pairs: Makes an object of its (key, value) pairs; a dictionary where none is given.
    """
    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}, line {line}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{path}, line {first_line}: JSON nested too deeply; {_TOO_DEEP}") from None
    except ValueError:  # Python refuses to make a number of thousands of digits
        raise UserError(f"{path}, line {first_line}: holds a number of too many digits to be read") from None
    if _depth(content) > DEEPEST:
        raise UserError(f"{path}, line {first_line}: JSON nested too deeply; {_TOO_DEEP}")
    return content


def _depth(content: Any) -> int:
    """How many containers lie within each other at most, counted no further than to one too many."""
    level, depth = [content], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            break
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth


def read_yaml(path: Path, unique_keys: bool = False) -> Any:
    """Read one YAML document (JSON is YAML too).

    Args:
        unique_keys: Refuse a key that stands twice in one mapping, of which YAML's readers take the last in silence.
            Published files of hyper-parameters hold such.

    Raises:
        UserError: the file is missing, is not YAML (file and line named), or would grow beyond all bounds: nested
            very deep, or with aliases of aliases.
    """
    return parse_yaml(read_text(path), path, unique_keys)


def parse_yaml(text: str, path: Path, unique_keys: bool = False) -> Any:
    """Parse one YAML document; see `read_yaml`."""
    import yaml

    try:
        _check_growth(yaml.parse(text, Loader=yaml.SafeLoader), path)
        if unique_keys:
            _check_keys(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)})") from None
    except UserError:
        raise
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise UserError(f"{path}: a value in it cannot be read ({error}); quote what is meant as text") from None


def _check_keys(node: Any, path: Path) -> None:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(child, path)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, child in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise UserError(f"{path}, line {key.start_mark.line + 1}: {key.value} stands there twice; keep one")
                seen.add(key.value)
            _check_keys(child, path)


def _check_growth(events: Iterable[Any], path: Path) -> None:
    """Refuse what a few lines of YAML can make of themselves, before any of it is built.

    An alias stands for all that its anchor holds, so aliases of aliases multiply; a value may even hold itself.

    Args:
        events: Of PyYAML's parser.
        path: For the message.
    """
    import yaml

    sizes: dict[str | None, int | None] = {}  # nodes below an anchor; None while it is open
    open_: list[tuple[str | None, int]] = []  # (anchor, nodes before it) of the containers around
    written = grown = 0
    for event in events:
        line = f"{path}, line {event.start_mark.line + 1}: "
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 1)
            if size is None:
                raise UserError(f"{line}*{event.anchor} stands within the value that it names, which would have no end")
            written, grown = written + 1, grown + size
            if grown > max(_FEW_NODES, 10 * written):
                raise UserError(
                    f"{line}its aliases (*{event.anchor}) make more than {_FEW_NODES:,} values of {written}; write out "
                    f"what is meant"
                )
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, grown))
                if len(open_) > DEEPEST:
                    raise UserError(f"{line}{_TOO_DEEP}")
            if event.anchor is not None:
                sizes[event.anchor] = 1 if isinstance(event, yaml.ScalarEvent) else None
            written, grown = written + 1, grown + 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = grown - before


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


def sha256(content: bytes | memoryview[int]) -> str:
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

    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().to("cpu").contiguous()
        place = t.untyped_storage().data_ptr()
        held[name] = t.clone() if place in places else t  # the file takes no tensors that share memory
        places.add(place)
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
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if expected_sha256 is not None and (found := sha256(content)) != expected_sha256:
        raise UserError(f"{path} is damaged: its sha256 is {found[:16]}…, recorded was {expected_sha256[:16]}…")
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # safetensors raises its own untyped SafetensorError
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
