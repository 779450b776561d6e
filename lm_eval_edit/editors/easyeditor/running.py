"""The package `easyeditor` as it is found: importing it, what of it outlives a call, and the names it wants to know."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval_edit.editors._shared.isolation import process_kept
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.errors import UserError

logger = logging.getLogger(__name__)

_HOW = "git clone https://github.com/zjunlp/EasyEdit, then easyedit_path=<the clone>; docs/easyeditor.md says more"
_FAMILIES = {"gpt2": "gpt2-xl", "gptj": "gpt-j-6b"}  # model types that EasyEdit looks for under another name
_FRESH: dict[str, Callable[[], Any]] = {  # the module globals that outlive a call, as they are in a new process
    "CONTEXT_TEMPLATES_CACHE": lambda: None, "COV_CACHE": dict, "KZ_CACHE": dict, "inv_mom2_cache": dict,
    "P_loaded": lambda: False, "cache_c_new": lambda: False,
}  # fmt: skip
_ABSENT = ("P", "cache_c")  # globals that a new process does not have


def import_package(path: str | None) -> tuple[dict[str, Callable[..., Any]], Path]:
    """EasyEdit's table of methods and the package's folder.

    Raises:
        UserError: no package there, another one was imported before, or a module that it needs is missing.
    """
    clone = Path(path).expanduser().resolve() if path else None
    if clone is not None and not (clone / "easyeditor" / "__init__.py").is_file():
        raise UserError(f"easyedit_path={path}: no folder with the package easyeditor in it. Get one by {_HOW}")
    present = set(sys.modules)
    entry = [str(clone)] if clone else []
    sys.path[:0] = entry
    try:
        with process_kept(logger):  # its import seeds all generators, configures logging and slows CUDA down
            package = importlib.import_module("easyeditor")
            methods = importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
    except ImportError as error:
        for name in set(sys.modules) - present:
            if name.split(".")[0] == "easyeditor":
                del sys.modules[name]
        if error.name == "easyeditor":
            raise UserError(f"editor=easyeditor needs the package easyeditor: {_HOW}") from None
        raise UserError(
            f"the package easyeditor cannot be imported: {error}. docs/easyeditor.md lists what it needs beside torch "
            f"and transformers"
        ) from error
    finally:
        for place in entry:
            sys.path.remove(place)
    assert package.__file__ is not None, "a package with the module easyeditor.util.alg_dict comes from a file"
    folder = Path(package.__file__).resolve().parent
    if clone is not None and folder.parent != clone:
        raise UserError(f"easyedit_path={path}: this process has already imported {folder}; start a new one")
    return methods, folder


def model_fields(context: EditContext | None = None) -> dict[str, Any]:
    """The fields of EasyEdit's hyper-parameters that say what the model is; without a context, placeholders."""
    found = dict.fromkeys(("rewrite_module_tmp", "layer_module_tmp", "mlp_module_tmp", "attn_module_tmp", "ln_f_module",
                           "lm_head_module", "model_name", "tokenizer_name"), "")  # fmt: skip
    if context is not None:
        model, block = context.model, context.architecture.blocks[0]
        layer = block.removesuffix("0") + "{}"
        projection = context.architecture.down_projections[0].removeprefix(block + ".")
        mlp, _, _ = projection.rpartition(".")
        names = {module: name for name, module in model.named_modules()}
        attention = [n for n, _ in model.get_submodule(block).named_children() if "attn" in n or "attention" in n]
        trunk = block.removesuffix(".0").rpartition(".")[0]
        norms = [n for n, m in model.get_submodule(trunk).named_children() if "norm" in type(m).__name__.lower()]
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        head = model.get_input_embeddings() if tied else model.get_output_embeddings()
        found = {
            "rewrite_module_tmp": f"{layer}.{projection}",
            "layer_module_tmp": layer,
            "mlp_module_tmp": f"{layer}.{mlp}" if mlp else layer,
            "attn_module_tmp": f"{layer}.{attention[0]}" if attention else "",
            "ln_f_module": f"{trunk}.{norms[-1]}" if norms else "",
            "lm_head_module": names[head],
            "model_name": _FAMILIES.get(model.config.model_type, model.config.model_type),
            "tokenizer_name": model.config.model_type,
        }
    device = str(context.model.device) if context is not None else "cpu"
    statistics = {"stats_dir": "stats", "mom2_dataset": "wikipedia", "mom2_n_samples": 100000, "mom2_dtype": "float32"}
    return found | statistics | {"device": device, "P_loc": "null_space_project.pt", "results_dir": "results"}


@contextlib.contextmanager
def fresh_globals(apply: Callable[..., Any], prepared: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Within the block the package's caches are as in a new process, but for the `prepared` ones.

    Args:
        apply: The method's entry point.
        prepared: Values for globals of these names, in every module that has them.

    Yields:
        The namespace of the method's module.
    """
    modules = [vars(module) for name, module in list(sys.modules.items()) if name.startswith("easyeditor.")]
    kept = [{name: space[name] for name in (*_FRESH, *_ABSENT) if name in space} for space in modules]
    own = vars(sys.modules[apply.__module__])
    try:
        for space, before in zip(modules, kept, strict=True):
            for name in _ABSENT:
                space.pop(name, None)
            space.update({name: prepared.get(name, make()) for name, make in _FRESH.items() if name in before})
        own.update({name: prepared[name] for name in _ABSENT if name in prepared})
        yield own
    finally:
        for space, before in zip(modules, kept, strict=True):
            for name in _ABSENT:
                space.pop(name, None)
            space.update(before)


@contextlib.contextmanager
def executor_kept(apply: Callable[..., Any]) -> Iterator[None]:
    """Undo what a method that is bound to an object keeps there: MEND's holds on to the first model it is given."""
    attributes = vars(apply.__self__) if inspect.ismethod(apply) else {}
    kept = dict(attributes)
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(kept)


@contextlib.contextmanager
def padding(tokenizer: Any, side: str) -> Iterator[None]:
    """The tokenizer as EasyEdit's editor sets it up."""
    kept = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side, tokenizer.pad_token = side, tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.padding_side, tokenizer.pad_token = kept
