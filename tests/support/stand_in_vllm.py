"""A vLLM of a few lines, over transformers and peft: what lm-eval's own `VLLM` calls of it, and vLLM's refusals.

It really applies the adapters it is given, and keeps answers by the adapter's name as vLLM's prefix cache does, so that
a wrong adapter, none, or two of one name are seen. It writes down each engine it starts, and whether a model that is
edited was still held then. `python -m tests.support.stand_in_vllm ARGUMENTS` is `lm-eval-edit` with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import os
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import model_registry

from tests.support.served_sweeps import quick_index

VERSION = "0.32.0+standin"
HARNESS_MODEL = "lm_eval.models.vllm_causallms"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
WITHOUT_LORA = ("GPT2LMHeadModel",)

#: What a test may ask of it: a file that engines are noted in, seconds before each answer, adapters ignored.
NOTES, SLEEP, IGNORE = "STAND_IN_VLLM_NOTES", "STAND_IN_VLLM_SLEEP", "STAND_IN_VLLM_IGNORE_ADAPTERS"


@dataclass
class SamplingParams:
    temperature: float = 0.0
    prompt_logprobs: int | None = None
    max_tokens: int = 1
    detokenize: bool = True
    stop: list[str] = field(default_factory=list)
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class EngineArgs:
    model: str = ""
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1


class LLM:
    def __init__(
        self,
        model: str,
        dtype: str,
        enable_lora: bool = False,
        max_lora_rank: int = 16,
        lora_target_modules: list[str] | None = None,
        max_model_len: int | None = None,
        **more: Any,
    ):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from lm_eval_edit.model import EditedHFLM

        gc.collect()
        held = sum(isinstance(found, EditedHFLM) for found in gc.get_objects())
        if NOTES in os.environ:
            kept = {
                name: more[name] for name in ("enforce_eager", "gpu_memory_utilization", "max_loras") if name in more
            }
            with open(os.environ[NOTES], "a") as file:
                rank = max_lora_rank if enable_lora else 0
                print(Path(model).name, dtype, f"rank={rank}", f"held={held}", sorted(kept.items()), file=file)
        self._base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        architecture = type(self._base).__name__
        if enable_lora and architecture in WITHOUT_LORA:
            raise ValueError(f"{architecture} does not support LoRA yet.")
        if enable_lora and max_lora_rank not in RANKS:
            raise ValueError(f"max_lora_rank {max_lora_rank} is none of {RANKS}")
        self._rank, self._modules, self._adapted = (max_lora_rank if enable_lora else 0), lora_target_modules, None
        length = max_model_len or self._base.config.max_position_embeddings
        core = types.SimpleNamespace(shutdown=lambda: None)
        config = types.SimpleNamespace(max_model_len=length)
        self.llm_engine = types.SimpleNamespace(model_config=config, engine_core=core)
        self._known: dict[Any, Any] = {}

    def generate(
        self,
        prompts: list[dict],
        sampling_params: list[SamplingParams],
        use_tqdm: bool = False,
        lora_request: LoRARequest | None = None,
    ) -> list[Any]:
        time.sleep(float(os.environ.get(SLEEP, 0)))
        name = None if lora_request is None else lora_request.lora_name
        model, manner = self._with(None if os.environ.get(IGNORE) else lora_request)
        found = []
        with manner, torch.no_grad():
            for prompt, how in zip(prompts, sampling_params, strict=True):
                key = (name, tuple(prompt["prompt_token_ids"]), repr(how))
                if key not in self._known:
                    self._known[key] = self._answer(model, prompt["prompt_token_ids"], how)
                found.append(self._known[key])
        return found

    def _with(self, request: LoRARequest | None) -> tuple[Any, Any]:
        if request is None:
            return self._base, nullcontext() if self._adapted is None else self._adapted.disable_adapter()
        import peft

        config, name = peft.PeftConfig.from_pretrained(request.lora_path), str(request.lora_int_id)
        if config.r > self._rank:
            raise ValueError(f"LoRA rank {config.r} is greater than max_lora_rank {self._rank}.")
        if strange := {module.rpartition(".")[2] for module in config.target_modules} - set(self._modules or ()):
            raise ValueError(f"{strange} of the adapter are not among the engine's lora_target_modules")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks it
            if self._adapted is None:
                self._adapted = peft.PeftModel.from_pretrained(self._base, request.lora_path, adapter_name=name)
            elif name not in self._adapted.peft_config:
                self._adapted.load_adapter(request.lora_path, adapter_name=name)
        self._adapted.set_adapter(name)
        return self._base, nullcontext()

    def _answer(self, model: Any, ids: list[int], how: SamplingParams) -> Any:
        logs = None
        if how.prompt_logprobs is not None:
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            logs = [None]
            for row, token in zip(scores[:-1], ids[1:], strict=True):
                best = int(row.argmax())
                logs.append({token: float(row[token]), best: float(row[best])})
        new: list[int] = []
        text = ""
        while how.prompt_logprobs is None and len(new) < how.max_tokens:
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == self._tokenizer.eos_token_id:
                break
            # As the text of the prompt goes on, which begins with a space where a text alone has none.
            whole = self._tokenizer.decode(ids + new, skip_special_tokens=how.skip_special_tokens)
            text = whole[len(self._tokenizer.decode(ids, skip_special_tokens=how.skip_special_tokens)) :]
            if found := [text.index(stop) for stop in how.stop if stop and stop in text]:
                text = text[: min(found)]
                break
        said = types.SimpleNamespace(text=text, token_ids=new)
        return types.SimpleNamespace(prompt_logprobs=logs, outputs=[said])


def _modules() -> dict[str, types.ModuleType]:
    from transformers import AutoTokenizer

    def get_tokenizer(name: str, tokenizer_mode: str = "auto", **how: Any) -> Any:
        return AutoTokenizer.from_pretrained(name, **{key: value for key, value in how.items() if value is not None})

    def resolve_chat_template(tokenizer: Any, chat_template: Any, tools: Any, model_config: Any) -> Any:
        return chat_template or tokenizer.chat_template

    contents = {
        "vllm": {
            "LLM": LLM,
            "SamplingParams": SamplingParams,
            "TokensPrompt": lambda prompt_token_ids: {"prompt_token_ids": prompt_token_ids},
        },
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": resolve_chat_template},
        "vllm.tokenizers": {"get_tokenizer": get_tokenizer},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": EngineArgs},
        "vllm.distributed": {"cleanup_dist_env_and_memory": lambda: None},
    }
    found = {}
    for name, content in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        vars(module).update(content)
        found[name] = module
    return found


@contextlib.contextmanager
def dying(name: str | None, call: int, most: int) -> Iterator[list[str | None]]:
    """Within the block an engine is dead from the `call`-th answer for an adapter on; yields whom engines died for.

    Args:
        name: The adapter's; None for the weights that the engine has loaded.
        call: From 1 on, of each engine.
        most: How many engines die.
    """
    deaths: list[str | None] = []
    answer = LLM.generate

    def generate(self: Any, prompts: Any, sampling_params: Any, **more: Any) -> Any:
        request = more.get("lora_request")
        asked = None if request is None else request.lora_name
        calls = vars(self).setdefault("calls", {})
        calls[asked] = calls.get(asked, 0) + 1
        if asked == name and calls[asked] == call and len(deaths) < most:
            deaths.append(asked)
            self.dead = True
        if getattr(self, "dead", False):
            raise RuntimeError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        return answer(self, prompts, sampling_params, **more)

    LLM.generate = generate  # type: ignore[method-assign]
    try:
        yield deaths
    finally:
        LLM.generate = answer  # type: ignore[method-assign]


NAMES = (
    "vllm", "vllm.lora", "vllm.lora.request", "vllm.renderers", "vllm.renderers.hf", "vllm.tokenizers", "vllm.engine",
    "vllm.engine.arg_utils", "vllm.distributed",
)  # fmt: skip


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Within the block the stand-in is the installed vLLM of this process; `folder` as for `install`."""
    before = {name: sys.modules.get(name) for name in (*NAMES, HARNESS_MODEL)}
    registered = dict(model_registry._objs)  # the harness registers its class when that module is imported
    install(folder)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for alias, target in model_registry._objs.items():
            if getattr(target, "__module__", "") == HARNESS_MODEL:
                model_registry._objs[alias] = registered[alias]
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def install(folder: Path) -> None:
    """Be the installed vLLM of this process, from now on.

    Args:
        folder: An empty one, for the metadata of its distribution; it joins `sys.path`.
    """
    about = folder / "vllm-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    sys.path.append(str(folder))
    found = _modules()
    assert found.keys() == set(NAMES)
    sys.modules.update(found)


if __name__ == "__main__":
    from lm_eval_edit.cli import main
    from lm_eval_edit.sweep import evaluation
    from tests.support import stand_in_vllm  # this very file under its own name: what a class is known by

    with tempfile.TemporaryDirectory() as metadata_folder:
        stand_in_vllm.install(Path(metadata_folder))
        evaluation.task_manager = quick_index
        sys.exit(main(sys.argv[1:]))
