"""What the installed transformers calls things: said here once, and asked for here by everything that calls a model.

Between two releases the argument for keys and values changed its name (`past_key_values`, `cache` since 5.24), and the
output's field with it. So the field is found by type: the one that holds a `Cache`. The argument has the field's name,
save where a model's own code is older than the library that renames its outputs. What a model can do is what a pass
over two tokens leaves in the cache, whatever it is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel

from lm_eval_edit.errors import UserError
from lm_eval_edit.models.devices import input_device

POSITIONS = "position_ids"  # (R, T) the position of each token
LOGITS_KEPT = "logits_to_keep"  # a number: so many columns from the end; (C,) indices: those columns
USE_CACHE = "use_cache"
MASK = "attention_mask"  # (R, T) 1 for each token that may be looked at
CACHES = ("cache", "past_key_values")  # names the argument is known to have had, the newest first

_TOKENS = 2  # of the pass that shows what a model keeps: one that is past, one that follows it


@dataclass(frozen=True)
class Kept:
    """What a model keeps from token to token.

    Attributes:
        name: Of the forward's argument that hands it over; None: the output holds no cache.
        layers: How many layers keep keys and values.
        other: How many layers keep something else, a recurrent state for instance, beside them or in their place; one
            more where the cache holds such a thing beside its layers.
        handed_on: {path of a module in a list of modules: shapes of the tensors it gave}, blocks among them.
    """

    name: str | None
    layers: int
    other: int
    handed_on: Mapping[str, list[tuple[int, ...]]] = field(default_factory=dict, compare=False)


_kept: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def kept(model: PreTrainedModel) -> Kept:
    """What a model keeps, seen in one pass over two tokens; asked again, no second pass is made.

    Raises:
        RuntimeError, NotImplementedError: the model cannot be run, as many cannot on the meta device.
    """
    if model not in _kept:
        ids = torch.arange(_TOKENS, device=input_device(model))[None]
        with torch.no_grad(), _evaluating(model), _handing_on(model) as shapes:
            # Without a mask transformers warns where one of these tokens happens to be the model's padding. Without
            # weights there are no tokens to see, and a mask would be looked into, which cannot be.
            wanted = {USE_CACHE: True} | ({} if ids.device.type == "meta" else {MASK: torch.ones_like(ids)})
            output = model(input_ids=ids, **{name: each for name, each in wanted.items() if _takes(model, name)})
        found, cache = _cache_in(output)
        layers = sum(layer is not None for layer in keys_and_values(cache))
        other = sum(map(_has_other_state, [*_layers(cache), *([] if cache is None else [cache])]))
        _kept[model] = Kept(found and _argument(model, found), layers, other, shapes)
    return _kept[model]


def with_cache(model: PreTrainedModel, cache: Cache) -> dict[str, Any]:
    """The arguments of `model`'s forward that hand it a cache, to be read and to be added to.

    Raises:
        UserError: the model keeps no cache of keys and values.
    """
    name = kept(model).name
    if name is None:
        raise UserError(f"{type(model).__name__} keeps no keys and values from token to token")
    return {name: cache} | ({USE_CACHE: True} if _takes(model, USE_CACHE) else {})


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The argument of `model`'s forward that asks for no cache."""
    return {USE_CACHE: False} if _takes(model, USE_CACHE) else {}


def is_hybrid(model: PreTrainedModel) -> bool:
    """Whether a model keeps a state of another kind besides keys and values, so that what it keeps cannot be cut."""
    return kept(model).other > 0


def cache_with(prefix: Iterable[tuple[Tensor, Tensor]] = ()) -> DynamicCache:
    """A cache that grows, and that holds (keys, values), each (R, heads, T, width), of each layer to begin with."""
    prefix = list(prefix)
    return DynamicCache(prefix) if prefix else DynamicCache()


def keys_and_values(cache: Cache | None) -> list[tuple[Tensor, Tensor] | None]:
    """(keys, values), each (R, heads, T, width), of each layer in a cache; None for a layer that keeps none."""
    found = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in _layers(cache)]
    return [(k, v) if isinstance(k, Tensor) and isinstance(v, Tensor) else None for k, v in found]


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the forward of a model names an argument. One that it would only pass on is not seen."""
    return argument in inspect.signature(model.forward).parameters


def _takes(model: nn.Module, argument: str) -> bool:
    """Whether the forward of a model may be given an argument, be it to pass it on."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return accepts(model, argument) or inspect.Parameter.VAR_KEYWORD in kinds


def _cache_in(output: Any) -> tuple[str | None, Cache | None]:
    fields = output.items() if isinstance(output, Mapping) else ()
    return next(((name, value) for name, value in fields if isinstance(value, Cache)), (None, None))


def _argument(model: nn.Module, field: str) -> str:
    """The argument that hands over what an output holds in `field`; one that is only passed on is called like it."""
    return next((name for name in (field, *CACHES) if accepts(model, name)), field)


def _layers(cache: Cache | None) -> Sequence[Any]:
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    return getattr(cache, "layers", ())


def _has_other_state(layer: Any) -> bool:
    """Whether a layer of a cache, or a cache beside its layers, holds activations that are no keys and no values."""

    def states(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            for each in value.values() if isinstance(value, dict) else value:
                yield from states(each)

    own = [getattr(layer, name, None) for name in ("keys", "values")]
    found = [tensor for value in vars(layer).values() for tensor in states(value)]
    # What has no axis for rows and one for features is a counter or a window's width.
    return any(t.is_floating_point() and t.ndim > 1 and all(t is not each for each in own) for t in found)


@contextmanager
def _handing_on(model: nn.Module) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Within the block a pass notes the shapes of what each module of a list of modules gives, by its path."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def noted(path: str, output: Any) -> None:
        given = output if isinstance(output, tuple) else (output,)
        shapes[path] = [tuple(each.shape) for each in given if isinstance(each, Tensor)]

    listed = {
        f"{path}.{index}": module
        for path, modules in model.named_modules()
        if isinstance(modules, nn.ModuleList)
        for index, module in enumerate(modules)
    }
    handles = [
        module.register_forward_hook(lambda module, args, output, path=path: noted(path, output))
        for path, module in listed.items()
    ]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block nothing is dropped at random and nothing saves memory by forgetting its keys."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
