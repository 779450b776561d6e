"""The speed of the device at hand, measured in a few seconds and kept: what `work.Device` says of a GPU by its
datasheet.

Measured are the rates of matrix products, of reading memory, and the time in which one small transformer block is
launched. They are reached rates, so no share of them is assumed beside; what else a run does is not in them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lm_eval_edit._support.files import hash_json, read_json, write_json
from lm_eval_edit._support.versions import versions
from lm_eval_edit.cost.work import Device
from lm_eval_edit.errors import UserError
from lm_eval_edit.models.devices import find_device

SECONDS = 0.4  # for each of the five measurements
_FORMAT = 1


def device_at_hand(given: str | None, cache: Path) -> tuple[Device, bool]:
    """The device of this machine: as it was measured before, else measured now and kept.

    Args:
        given: As `--device`; None for the default.
        cache: The folder that keeps measurements.

    Returns:
        (device, whether it was measured now).

    Raises:
        UserError: there is no such device.
    """
    device = torch.device(find_device(given, "--device "))
    identity = {"format": _FORMAT, "device": _name(device), "threads": torch.get_num_threads(), "versions": versions()}
    file = cache / "device_rates" / f"{hash_json(identity)[:20]}.json"
    try:
        return Device(**read_json(file)["rates"]), False
    except (UserError, TypeError, LookupError):  # not measured yet, or not readable: it takes seconds
        pass
    measured = measure(device)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run these seconds again
        write_json(file, {"identity": identity, "rates": asdict(measured)})
    return measured, True


def measure(device: torch.device, seconds: float = SECONDS) -> Device:
    """Measure a device, about five times so many seconds long."""

    def rate(work: Callable[[], Any], amount: float) -> float:
        work()
        _wait(device)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            work()
            _wait(device)
            count += 1
        return count * amount / (time.perf_counter() - started)

    size = 4096 if device.type == "cuda" else 512

    def products(dtype: torch.dtype) -> float:
        a = torch.randn(size, size, device=device).to(dtype)
        return rate(lambda: a @ a, 2.0 * size**3)

    block = torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, device=device).eval()
    x = torch.randn(1, 4, 64, device=device)
    memory = torch.empty(64_000_000 if device.type == "cuda" else 8_000_000, device=device)
    with torch.no_grad():
        return Device(
            name=_name(device),
            half=products(torch.bfloat16),
            single=products(torch.float32),
            double=products(torch.float64) if device.type != "mps" else 1.0,
            bandwidth=rate(memory.sum, memory.numel() * 4.0),
            memory=_memory(device),
            utilisation=1.0,
            seconds_per_block=1 / rate(lambda: block(x), 1.0),
        )


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads"


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # a system that does not say
        return 16e9
