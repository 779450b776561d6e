"""Run another library's code on a model and leave no trace of it: not in the model, not in the process."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn


class ModelSnapshot:
    """A copy of a model's parameters in main memory, and of all attributes of its modules and parameters.

    Hooks, children, training mode and notes that foreign code pins to a module or a weight are all attributes. Costs
    one copy of the weights: nothing is known about what the foreign code changes.
    """

    def __init__(self, model: nn.Module):
        self.weights = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
        self._parameters = [
            (p, self.weights[name], p.requires_grad, p.grad, dict(vars(p))) for name, p in model.named_parameters()
        ]
        self._attributes = [_attributes(owner) for owner in (*model.modules(), model.config)]

    @torch.no_grad()
    def changed(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The parameters whose bits are no longer those of the snapshot, as they are now, in main memory."""
        now = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if name in self.weights}
        return {name: p for name, p in now.items() if not p.equal(self.weights[name])}

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back: weights to their bits, gradients, and the attributes of modules and weights."""
        for owner, attributes, contents in self._attributes:
            vars(owner).clear()
            vars(owner).update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                attributes[name].update(content)
        for parameter, kept, wants_gradient, gradient, attributes in self._parameters:
            if not parameter.detach().cpu().equal(kept):
                parameter.data.copy_(kept)
            parameter.requires_grad_(wants_gradient)
            parameter.grad = gradient
            vars(parameter).clear()
            vars(parameter).update(attributes)


def _attributes(owner: object) -> tuple[object, dict[str, Any], dict[str, dict[Any, Any]]]:
    """(owner, its attributes, the contents of those that are dictionaries: parameters, children, hooks)."""
    attributes = dict(vars(owner))
    return owner, attributes, {name: dict(value) for name, value in attributes.items() if isinstance(value, dict)}


class _ToLog(io.TextIOBase):
    """A text stream whose lines become log records."""

    def __init__(self, logger: logging.Logger):
        self._logger, self._rest = logger, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self._logger.debug("%s", line)
        return len(text)


@contextlib.contextmanager
def process_kept(
    logger: logging.Logger, folder: Path | None = None, dtype: torch.dtype = torch.float32
) -> Iterator[None]:
    """Within the block another library may do as it likes with the process; afterwards the process is as it was.

    Kept: the random states of Python, numpy and torch (all devices), environment variables, the root logger's level and
    handlers, the working folder, torch's default dtype. What is printed goes to `logger` at level DEBUG.

    Args:
        logger: Where printed lines go.
        folder: The working folder within the block.
        dtype: Torch's default dtype within the block.
    """
    root = logging.getLogger()
    python, numbers, torch_cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    environment, handlers, level, here = dict(os.environ), root.handlers[:], root.level, Path.cwd()
    default = torch.get_default_dtype()
    if folder is not None:
        os.chdir(folder)
    torch.set_default_dtype(dtype)
    try:
        with contextlib.redirect_stdout(_ToLog(logger)):
            yield
    finally:
        os.chdir(here)
        torch.set_default_dtype(default)
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(python)
        numpy.random.set_state(numbers)
        torch.set_rng_state(torch_cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def seed_everything(seed: int) -> None:
    """Seed the global generators, for foreign code that draws from them; only within `process_kept`."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
