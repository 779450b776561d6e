"""The blocks below an edit, run once for every state of the blocks above them.

An edit at block l changes nothing below it: the same prompts give block l the same hidden states, and a cache the same
keys and values of the blocks below. Both are kept, and a later pass over these prompts begins at block l. What a pass
is given decides, to the bit; what follows is computed by the model's own blocks on the same tensors, so that every
figure is that of a whole pass to the last digit.

What a model does with its blocks beyond that (a recurrent state, keys that layers share, values handed past them) is
not read off its code but tried, by `models.tried_above`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import Cache, PreTrainedModel

from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.bridging import bridged, hidden_of

Call = tuple[tuple[Any, ...], dict[str, Any]]

#: Periods of use (`LowerBlocks.used`) after which something that nobody asked for may give its place to something new.
#: Not sooner: where all prompts take more than the limit, in the same order every time, what is asked for least
#: recently is what is asked for next, and a store that always drops that never finds anything.
STALE = 3


@dataclass
class Counts:
    """What became of the passes that could have begun above the lower blocks.

    Attributes:
        hits: Begun there.
        misses: Run whole, and kept.
        full: Run whole, and not kept for want of room.
        others: Run whole, being given what is not compared (an object of unknown kind, other lower weights).
        dropped: Kept passes that gave their places to others.
        bytes: Kept now.
        most: Kept at once, at most.
    """

    hits: int = 0
    misses: int = 0
    full: int = 0
    others: int = 0
    dropped: int = 0
    bytes: int = 0
    most: int = 0


@dataclass
class _Kept:
    """What is kept of one pass.

    Attributes:
        hidden: Number of a block -> the hidden states that enter it.
        updates: Number of a block -> what it gave the cache, call by call.
        bytes: Of all that.
        period: Of its last use.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    updates: dict[int, list[Call]] = field(default_factory=dict)
    bytes: int = 0
    period: int = 0


class LowerBlocks:
    """The lower blocks of one model, and what is kept of their passes.

    Args:
        model: A causal language model in evaluation mode.
        architecture: Its parts.
        levels: Numbers of the blocks above which weights may change: what enters these is kept.
        limit: Bytes that may be kept, in the memory of the devices that the blocks are on.
        caches: Whether passes that fill a cache of keys and values may begin above the lower blocks too.

    Attributes:
        counts: What became of the passes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        levels: Iterable[int],
        limit: float,
        caches: bool = True,
    ):
        self.model, self.levels, self.limit, self.caches = model, tuple(sorted(set(levels))), limit, caches
        if not self.levels or not 0 < self.levels[0] <= self.levels[-1] < architecture.n_layers:
            raise ValueError(f"levels {self.levels}: want blocks that have blocks below them")
        self.counts = Counts()
        self._paths = architecture.blocks
        self._blocks = [model.get_submodule(path) for path in architecture.blocks[: self.levels[-1]]]
        self._returns_tuple = [False] * len(self._blocks)
        self._passes: dict[bytes, _Kept] = {}  # the least recently used first
        self._level = self._period = 0
        self._watched: list[Tensor] = []
        self._as_it_stands: tuple[tuple[int, int], ...] = ()
        self._open: contextlib.ExitStack | None = None
        self._then: Callable[[], None] = lambda: None
        self._unfilled = False  # a pass that leaves a cache without what the lower blocks would have given it

    @contextlib.contextmanager
    def used(self, level: int) -> Iterator[None]:
        """Within, passes without gradients begin as far up as is known, at block `level` at most.

        Nothing below that block may have changed since earlier uses: `lower_tensors` says what that is. Where it
        changes within, passes are run whole.
        """
        level = max((each for each in self.levels if each <= level), default=0)
        if not level:
            yield
            return
        self._level, self._period = level, self._period + 1
        self._watched = [tensor for _, tensor in lower_tensors(self.model, self._paths, level)]
        self._as_it_stands = _stand(self._watched)
        before = self.model.register_forward_pre_hook(self._before, with_kwargs=True)
        after = self.model.register_forward_hook(self._after, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            self._watched = []
            if self._open is not None:  # a pass was interrupted, and its hook not called
                self._open.close()
                self._open, self._unfilled = None, False

    # ------------------------------------------------------------------------------------------------------- one pass

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() or any(
            isinstance(v, Cache) and v.get_seq_length() for v in (*args, *kwargs.values())
        ):
            return  # of training, or of tokens behind the prompts
        key, fills = _asked(args, kwargs)
        if key is None or (fills and not self.caches) or _stand(self._watched) != self._as_it_stands:
            self.counts.others += 1
            return
        kept = self._passes.get(key)
        level = max((each for each in kept.hidden if each <= self._level), default=0) if kept is not None else 0
        with contextlib.ExitStack() as stack:
            if kept is not None:
                kept.period = self._period
                self._passes[key] = self._passes.pop(key)
            if kept is not None and level:
                self.counts.hits += 1
                stack.enter_context(self._begun_at(level, kept))
                self._unfilled = not fills
            if level < self._level:
                found = stack.enter_context(self._listening(level, fills))
                self._then = lambda: self._keep(key, found)
            self._open = stack.pop_all()

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._open is None:
            return
        self._open.close()
        then, self._open, self._then = self._then, None, lambda: None
        unfilled, self._unfilled = self._unfilled, False
        if output is not None:  # else the pass has raised an error
            then()
        if unfilled:
            _close(output)

    def _begun_at(self, level: int, kept: _Kept) -> contextlib.AbstractContextManager[None]:
        """A context in which a pass begins at a block."""

        def instead(layer: int, given: Iterable[Any]) -> None:
            if updates := kept.updates.get(layer, ()):
                (cache,) = _caches(given)
                for args, kwargs in updates:
                    cache.update(*args, **kwargs)

        # A copy: some blocks add to what they are given.
        return bridged(self._blocks[:level], kept.hidden[level].clone(), self._returns_tuple, instead)

    @contextlib.contextmanager
    def _listening(self, level: int, fills: bool) -> Iterator[_Kept]:
        """A context in which what a pass does from block `level` up to the present level is found out.

        Args:
            fills: Whether a cache is to be filled, so that what blocks give it is kept.
        """
        found, wanted = _Kept(period=self._period), {each for each in self.levels if level < each <= self._level}
        running: list[int] = []  # the block that is being run
        copies = _Copies()

        def on_update(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if running:
                found.updates.setdefault(running[-1], []).append((copies.of(args), copies.of(kwargs)))

        def on_begin(layer: int, given: Iterable[Any]) -> None:
            running.append(layer)
            for cache in _caches(given) if fills else ():  # the model may have made it itself
                if "update" not in vars(cache):
                    stack.enter_context(_overheard(cache, on_update))

        def on_end(layer: int, output: Any) -> None:
            running.clear()
            self._returns_tuple[layer] = isinstance(output, tuple)
            if layer + 1 in wanted:
                found.hidden[layer + 1] = copies.of(hidden_of(output))
            found.bytes = copies.bytes

        with contextlib.ExitStack() as stack:
            for layer in range(level, max(wanted)):
                block = self._blocks[layer]
                begin = block.register_forward_pre_hook(
                    lambda m, args, kwargs, layer=layer: on_begin(layer, [*args, *kwargs.values()]), with_kwargs=True
                )
                end = block.register_forward_hook(lambda m, args, output, layer=layer: on_end(layer, output))
                stack.callback(begin.remove)
                stack.callback(end.remove)
            yield found

    def _keep(self, key: bytes, found: _Kept) -> None:
        """Keep what was found of a pass, if there is room for it."""
        known = self._passes.get(key)
        if not self._make_room(found.bytes):
            self.counts.full += known is None
            return
        if known is None:
            self.counts.misses += 1
            self._passes[key] = found
        else:
            known.hidden |= found.hidden
            known.updates |= found.updates
            known.bytes += found.bytes
        self.counts.bytes += found.bytes
        self.counts.most = max(self.counts.most, self.counts.bytes)

    def _make_room(self, size: int) -> bool:
        """Drop what nobody has asked for of late, as far as it takes; whether there is room then."""
        while self.counts.bytes + size > self.limit:
            oldest = next(iter(self._passes), None)
            if oldest is None or self._passes[oldest].period > self._period - STALE:
                return False
            self.counts.bytes -= self._passes.pop(oldest).bytes
            self.counts.dropped += 1
        return True


def lower_tensors(model: nn.Module, blocks: tuple[str, ...], level: int) -> list[tuple[str, Tensor]]:
    """(name, tensor) of every parameter and buffer that is not of block `level` or of one above it.

    Args:
        blocks: Module paths of the model's blocks.
    """
    above = tuple(f"{path}." for path in blocks[level:])
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in named if not name.startswith(above)]


def _stand(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Where tensors lie and how often they were written to: something else once they have changed."""
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


def _asked(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bytes | None, bool]:
    """What a pass is given, as a hash, None where that cannot be told, and whether it is to fill a cache.

    A cache that is there is empty. One that nobody has given, nor asked for, nobody reads.
    """
    told, fills = hashlib.blake2b(), kwargs.get(naming.USE_CACHE) is True
    for name, value in (*enumerate(args), *sorted(kwargs.items())):
        if isinstance(value, Tensor):
            told.update(f"{name}:{value.dtype}{tuple(value.shape)}{value.device};".encode())
            told.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Cache):
            fills = True
            told.update(f"{name}:{type(value).__qualname__};".encode())
        elif value is None or isinstance(value, (bool, int, float, str)):
            told.update(f"{name}:{value!r};".encode())
        else:
            return None, fills
    return told.digest(), fills


def _caches(given: Iterable[Any]) -> list[Cache]:
    """The cache among what a block is given."""
    return [value for value in given if isinstance(value, Cache)]


def _close(output: Any) -> None:
    """See to it that a cache that lacks what the lower blocks would have given it is not gone on with."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "this cache is of a pass that began above the lowest blocks and was not asked for a cache: give it one, or "
            "use_cache=True"
        )

    for cache in _caches(
        output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    ):
        vars(cache)["update"] = refuse


@contextlib.contextmanager
def _overheard(cache: Cache, hear: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """A context in which every update of a cache is heard of before it is made."""
    update = cache.update

    def heard(*args: Any, **kwargs: Any) -> Any:
        hear(args, kwargs)
        return update(*args, **kwargs)

    vars(cache)["update"] = heard  # of this object alone
    try:
        yield
    finally:
        del vars(cache)["update"]


class _Copies:
    """Copies of tensors, of each one.

    Attributes:
        bytes: That they take.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._made = WeakIdKeyDictionary()

    def of(self, value: Any) -> Any:
        """A value with copies of the tensors in it. What is a part of a larger tensor does not keep that one."""
        if isinstance(value, Tensor):
            if value not in self._made:
                self._made[value] = value.detach().clone()
                self.bytes += value.numel() * value.element_size()
            return self._made[value]
        if isinstance(value, (list, tuple)):
            return tuple(self.of(each) for each in value)
        if isinstance(value, dict):
            return {name: self.of(each) for name, each in value.items()}
        return value
