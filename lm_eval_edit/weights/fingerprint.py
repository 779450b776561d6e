"""What a model's weights are, as a hash: cheap enough to ask after every edit, and for a model of many gigabytes.

    xxh3_128   of a parameter's bytes as they lie in memory, about as fast as they are read: what is written today
    sha256     what ledgers were written with that do not say which: a sum over all bits for the unedited model, the
               sha256 of every edited parameter. They are read, checked and continued with that

A fingerprint detects other weights, not a forger. What protects a file against being changed is another hash, the
sha256 of its bytes (`_support.files`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from lm_eval_edit._support.files import hash_json, hash_tensor
from lm_eval_edit.errors import UserError

#: The hash of what is made anew, and that of ledgers that name none.
NEWEST, OLDEST = "xxh3_128", "sha256"

_CHUNK = 1 << 22  # elements hashed at a time: bounds what is copied to 32 MiB at most


def hash_named(described: Mapping[str, Any]) -> str:
    """The hash that the fingerprints of a ledger are made with.

    Args:
        described: `model` of its identity.

    Raises:
        UserError: it is none that this version knows.
    """
    name = described.get("hash", OLDEST)
    if name not in (NEWEST, OLDEST):
        raise UserError(
            f"its fingerprints are made with the hash {name!r}; this version of lm-eval-edit knows {NEWEST} and "
            f"{OLDEST}. A later version wrote it: use that one"
        )
    return str(name)


def tensor_hash(tensor: Tensor, name: str = NEWEST) -> str:
    """A hash of a tensor's bits (any dtype, any device), in hexadecimal.

    Args:
        tensor: Whose.
        name: Of the hash.
    """
    if name == OLDEST:
        return hash_tensor(tensor)
    state = xxhash.xxh3_128()
    for chunk in _chunks(tensor, torch.uint8):
        state.update(chunk.to("cpu").numpy().data)
    return state.hexdigest()


def hash_of_json(content: Any, name: str = NEWEST) -> str:
    """A hash of a JSON-able value, independent of key order."""
    if name == OLDEST:
        return hash_json(content)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def model_fingerprint(model: nn.Module, name: str = NEWEST) -> str:
    """A hash of all parameters' names, shapes, dtypes and bits.

    Args:
        model: Whose.
        name: Of the hash.
    """
    entries = parameter_hashes(model) if name == NEWEST else parameter_sums(model)
    return hash_of_json([entry for _, entry in sorted(entries.items())], name)


def describe_weights(model: nn.Module, name: str = NEWEST) -> dict[str, str]:
    """What a ledger says of its model: `hash_named` reads it. One that names no hash stays without."""
    described = {"fingerprint": model_fingerprint(model, name), "class": type(model).__name__}
    return described if name == OLDEST else described | {"hash": name}


def parameter_hashes(model: nn.Module) -> dict[str, list[Any]]:
    """Per parameter its name, shape, dtype, and a hash of its bits: the same on every device."""
    return _entries(model, tensor_hash)


@torch.no_grad()
def parameter_sums(model: nn.Module) -> dict[str, list[Any]]:
    """As `parameter_hashes`, with a sum over the bits: what older ledgers and the names of cached files are made of.

    The bit patterns are summed with odd position-dependent weights modulo 2⁶⁴ on the parameter's own device: exact
    integer arithmetic, so the same on every device and in every order, and every element counts.
    """
    return _entries(model, _sum_of_bits)


def _entries(model: nn.Module, of: Callable[[Tensor], Any]) -> dict[str, list[Any]]:
    return {name: [name, list(p.shape), str(p.dtype), of(p.data)] for name, p in model.named_parameters()}


def _sum_of_bits(data: Tensor) -> int:
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[data.element_size()]
    total = start = 0
    for part in _chunks(data, bits):
        chunk = part.to(torch.int64)
        position = torch.arange(start, start + chunk.numel(), device=chunk.device, dtype=torch.int64)
        total = (total + int((chunk * (position * 0x9E3779B97F4A7C1 + 1 | 1)).sum())) % (1 << 64)
        start += chunk.numel()
    return total


def _chunks(tensor: Tensor, bits: torch.dtype) -> Iterator[Tensor]:
    """A tensor's bits in the order of its elements, some at a time."""
    flat = tensor.detach().contiguous().flatten().view(bits)
    for start in range(0, flat.numel(), _CHUNK):
        yield flat[start : start + _CHUNK]
