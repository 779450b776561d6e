"""Second moments on disk: our safetensors files, and the `.npz` files of the published ROME and MEMIT statistics."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy
import safetensors
import torch
from torch import Tensor

from lm_eval_edit.errors import UserError

MOMENT, COUNT, PICKS, FILLED = ".second_moment", ".count", ".picks", ".filled"


@dataclass(frozen=True)
class Estimate:
    """A second moment and what it was estimated from.

    Attributes:
        moment: C (f, f); of a mixture's experts (E, f, f).
        count: Tokens; None if it is not known.
        picks: (E,) how many of them picked each expert; None if it is not known, and where there are no experts.
        filled: Whether what few tokens or picks leave out has been added to C: it is used as it stands.
    """

    moment: Tensor
    count: int | None = None
    picks: Tensor | None = None
    filled: bool = False


#: Reads one module's estimate. Called when C is needed: a large model's is 0.5 GB.
Reader = Callable[[], Estimate]

# <stats_dir>/<model>/<data set>_stats/<module>_<dtype>_mom2_<samples>.npz
_PUBLISHED = re.compile(r"(?P<module>.+)_float\d+_mom2_\w+\.npz")


def read_moments(path: Path) -> dict[str, Reader]:
    """What a file, or a folder with such files anywhere in it, holds: a reader per module.

    Raises:
        UserError: nothing there, not a file of second moments, or a folder with two for one module.
    """
    if not path.is_dir():
        return _readers(path)
    files = sorted(f for f in path.rglob("*") if _PUBLISHED.fullmatch(f.name) or f.name.endswith("moments.safetensors"))
    found: dict[str, tuple[Path, Reader]] = {}
    for file in files:
        for module, reader in _readers(file).items():
            if module in found:
                raise UserError(f"{path} has second moments of {module} twice: {found[module][0]} and {file}; name one")
            found[module] = (file, reader)
    if not found:
        raise UserError(f"{path} has no second moments: no file *_mom2_*.npz (ROME, MEMIT) or *moments.safetensors")
    return {module: reader for module, (_, reader) in found.items()}


def _readers(path: Path) -> dict[str, Reader]:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if path.suffix == ".npz":
        name = _PUBLISHED.fullmatch(path.name)
        if not name:
            raise UserError(f"{path}: an .npz of second moments is called <module>_<dtype>_mom2_<samples>.npz")
        return {name["module"]: lambda: _read_npz(path)}
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
    except Exception as error:  # safetensors raises its own untyped SafetensorError
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    modules = [name.removesuffix(MOMENT) for name in names if name.endswith(MOMENT)]
    if not modules:
        raise UserError(
            f"{path} holds no second moments: none of its tensors is named <module>{MOMENT} "
            f"(found {', '.join(names[:4]) or 'nothing'})"
        )
    return {module: _safetensors_reader(path, module, names) for module in modules}


def _safetensors_reader(path: Path, module: str, names: Collection[str]) -> Reader:
    def read() -> Estimate:
        try:
            with safetensors.safe_open(path, "pt") as file:
                count = int(file.get_tensor(module + COUNT).sum()) if module + COUNT in names else None
                picks = file.get_tensor(module + PICKS) if module + PICKS in names else None
                filled = module + FILLED in names and bool(file.get_tensor(module + FILLED).any())
                return Estimate(file.get_tensor(module + MOMENT), count, picks, filled)
        except ValueError as error:  # a count that is no number
            raise UserError(f"{path}: the count of tokens of {module} cannot be read ({error})") from None

    return read


def _read_npz(path: Path) -> Estimate:
    """The published statistics keep the sum Σ k kᵀ and the number of tokens."""
    try:
        with numpy.load(path, allow_pickle=False) as arrays:  # no code is run, whatever the file holds
            total, count = arrays["mom2.mom2"], int(arrays["mom2.count"])
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a file of second moments: want arrays mom2.mom2 and mom2.count ({error})"
        ) from None
    return Estimate(torch.from_numpy(total) / count, count)
