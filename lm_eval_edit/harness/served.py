"""lm-eval's own vLLM model for a sweep: one engine answers for the unedited model and, by LoRA, for edits of it.

What the class of lm-eval takes as one adapter for all its life (`lora_local_path`) is changed between evaluations:
`Served.serve` says whose answers come next. Every adapter has a name and number of its own, which vLLM's prefix cache
goes by, and the harness's response cache is kept apart by the weights' fingerprint.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from lm_eval_edit.errors import UserError, in_one_line, nearest
from lm_eval_edit.facts.tokens import appended, ask_as, without_appended
from lm_eval_edit.harness.endings import TOKENS_BEFORE, Listener, listening
from lm_eval_edit.harness.left_over import end_left_over, forget, noted
from lm_eval_edit.harness.response_cache import keep_apart

logger = logging.getLogger("lm_eval_edit")

#: What lm-eval's class takes of its own and hands on under another name, or keeps for itself.
_HARNESS_ARGS = ("max_batch_size", "max_gen_toks", "truncation_side")


@dataclass(frozen=True)
class Served:
    """Whose answers an engine gives.

    Attributes:
        name: Names the state of the weights; no two of an engine are alike.
        fingerprint: A hash of these weights.
        adapter: The folder of the LoRA adapter; None for the weights that the engine has loaded.
        edited: Whether the weights carry edits.
        info: What results are to say about the model beside the engine: the block `edit`.
    """

    name: str
    fingerprint: str
    adapter: str | None = None
    edited: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapters:
    """What an engine must have room for.

    Attributes:
        max_rank: vLLM's `max_lora_rank`.
        modules: Last names of the modules that any of them changes; vLLM wraps these and no others.
    """

    max_rank: int
    modules: tuple[str, ...]


def vllm_version() -> str:
    """The version of the installed vLLM.

    Raises:
        UserError: there is none, or lm-eval will not find it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--engine vllm needs vLLM, which is not installed: pip install vllm (for CPUs see docs/engines.md), into "
            "an environment whose torch and transformers it takes; or leave --engine away to evaluate in this process"
        )
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            "--engine vllm: the module vllm is there and no distribution of that name, whose version lm-eval asks for; "
            "docs/engines.md says what to put beside a build of another name"
        ) from error


def has_ray() -> bool:
    """Whether the harness can spread replicas of an engine."""
    return importlib.util.find_spec("ray") is not None


def engine_argument_problems(given: Mapping[str, Any]) -> list[str]:
    """What vLLM knows no argument of, as sentences."""
    if not given:
        return []
    try:
        from vllm.engine.arg_utils import EngineArgs
    except Exception as error:  # a build for another machine fails in many ways
        return [f"--engine vllm: vLLM cannot be imported here ({in_one_line(error)})"]
    known = [f.name for f in fields(EngineArgs)] + list(_HARNESS_ARGS)
    return [
        f"--engine_args {name}: vLLM has no such argument.{nearest(name, known)}" for name in given if name not in known
    ]


def start(
    pretrained: str,
    dtype: str,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any],
    adapters: Adapters | None,
    owner: Path,
) -> Any:
    """An engine, and lm-eval's model around it.

    Args:
        pretrained: A folder or a hub id.
        dtype: float32, float16 or bfloat16.
        options: Of the model, as lm-eval's class names them.
        arguments: Of the engine.
        adapters: What it is to serve beside the weights in `pretrained`; None for nothing.
        owner: The folder in which its processes are noted while they live (`left_over`). Those of an engine that does
            not come to be are ended.
    """
    # Not forked: this process has run a model, with threads and maybe on a GPU, and holds the lock of a folder.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from lm_eval.models.vllm_causallms import VLLM

    room: dict[str, Any] = {}
    if adapters is not None:
        # Cells are evaluated one after another, so one adapter at a time is on the device; the others lie on the disk.
        room = {"enable_lora": True, "max_lora_rank": adapters.max_rank, "max_loras": 1}
        room["lora_target_modules"] = list(adapters.modules)
    cls = type("ServedVLLM", (ServedModel, VLLM), {})
    try:
        with noted(owner):
            return cls(pretrained=pretrained, dtype=dtype, **{"batch_size": "auto", **options, **arguments, **room})
    except BaseException:  # nobody holds it, and the next engine's processes are noted in the place of its own
        end_left_over(owner)
        with contextlib.suppress(Exception):  # why there is no engine is what is told
            _give_back()
        raise


def stop(lm: Any, owner: Path) -> None:
    """End an engine and free what it held, so that another one, or a model of transformers, has room."""
    model = vars(lm).pop("model", None)
    core = getattr(getattr(model, "llm_engine", None), "engine_core", None)
    try:
        if core is not None:
            core.shutdown()
        del model, core
        _give_back()
    except Exception:  # a broken one; its processes end all the same
        logger.exception("vLLM did not end in order")
        end_left_over(owner)
    forget(owner)


def _give_back() -> None:
    """Give back what vLLM holds of this process: process groups, memory."""
    gc.collect()
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


class ServedModel:
    """Put before lm-eval's `VLLM`: which adapter answers, tokens by our one rule, and how outputs ended."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        lm: Any = self
        ask_as(lm.tokenizer, lm.add_bos_token, lm.prefix_token_id)
        self._appended = tuple(appended(lm.tokenizer))
        self._numbers: dict[str, int] = {}
        self._served = Served("unedited", "")
        self._engine_info: dict[str, Any] = {}
        self._ends = _ends(str(arguments["pretrained"]), arguments)

    def describe_engine(self, info: Mapping[str, Any]) -> None:
        """What results say about the engine."""
        self._engine_info = dict(info)

    def serve(self, what: Served) -> None:
        """From now on these weights answer."""
        lm: Any = self
        self._served = what
        lm.lora_request = None
        if what.adapter is not None:
            from vllm.lora.request import LoRARequest

            number = self._numbers.setdefault(what.name, len(self._numbers) + 1)
            lm.lora_request = LoRARequest(what.name, number, what.adapter)
        keep_apart(lm.cache_hook, what.fingerprint)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """As in the harness, with the response cache kept apart for each of the weights served."""
        keep_apart(cache_hook, self._served.fingerprint)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]  # the class beside this one has it

    @property
    def device(self) -> str:
        """What the engine runs on, as far as torch can tell."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def get_model_info(self) -> dict[str, Any]:
        """What results say of the model: its engine and dtype, and what was edited."""
        return {
            "model_dtype": f"torch.{self._engine_info.get('dtype')}",
            "engine": self._engine_info,
            **self._served.info,
        }

    def tok_encode(self, string: str | Sequence[str], add_special_tokens: bool | None = None, **kwargs: Any) -> Any:
        """As in lm-eval, without a token that the tokenizer would put behind every text."""
        lm: Any = self
        # The class beside this one has it.
        ids = super().tok_encode(string, add_special_tokens=add_special_tokens, **kwargs)  # type: ignore[misc]
        if not self._appended:
            return ids
        if isinstance(string, str):
            return without_appended(lm.tokenizer, string, ids)
        return [without_appended(lm.tokenizer, text, row) for text, row in zip(string, ids, strict=True)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As in lm-eval, each text with what its tokens tell of its end (`harness.outputs.Output`)."""
        with listening(self, edited=self._served.edited, ends=self._ends, key=self._key) as listener:
            # The class beside this one has it.
            texts = super().generate_until(requests, disable_tqdm=disable_tqdm)  # type: ignore[misc]
        return listener.outputs(requests, texts)

    def _model_generate(self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None) -> Any:
        lm: Any = self
        # The class beside this one has it.
        found = super()._model_generate(requests, generate=generate, sampling_params=sampling_params)  # type: ignore[misc]
        if not generate:
            return found
        rows = []
        for prompt, each in zip(requests, found, strict=True):
            said, new = each.outputs[0], list(each.outputs[0].token_ids)
            end = next((i for i, token in enumerate(new) if token in self._ends or token == lm.eot_token_id), None)
            # As HFLM decodes: of one tokenizer's tokens vLLM makes a text with other white space at its beginning.
            said.text = lm.tokenizer.decode(new[:end], skip_special_tokens=True)
            rows.append((prompt[-TOKENS_BEFORE:], new))
        if isinstance(lm.cache_hook, Listener):
            lm.cache_hook.hear_rows(rows)
        return found

    def _key(self, request: Sequence[Any], text: str) -> bytes:
        """What an output is known by again: lm-eval hands on changed options of generation, of which these stay."""
        lm: Any = self
        _, _, most = lm.modify_gen_kwargs(dict(request[1]), eos=None, default_max_gen_toks=lm.max_gen_toks)
        return hashlib.sha256(json.dumps([request[0], most, text]).encode(errors="surrogatepass")).digest()


def _ends(pretrained: str, options: Mapping[str, Any]) -> set[int]:
    """The tokens at which vLLM ends an output beside the tokenizer's own: those of the generation configuration."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(pretrained, revision=options.get("revision") or "main")
    except OSError:  # few models have none
        return set()
    ends = config.eos_token_id
    return {int(token) for token in (ends if isinstance(ends, list) else [ends]) if token is not None}
