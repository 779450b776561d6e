"""The measurements of benchmarks/gpu.py: edits and evaluations of one model on one device, within a budget of time."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from transformers import PretrainedConfig, PreTrainedModel

from benchmarks import gpu_models
from benchmarks.editing import make_facts, make_templates, relative_error
from lm_eval_edit import EditedHFLM
from lm_eval_edit.cost.run import estimate
from lm_eval_edit.cost.work import Shape
from lm_eval_edit.editors.base import EditContext, Editor, find_editor
from lm_eval_edit.editors.hyperparameters import presets, resolve
from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.harness.requests import Origin, make
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import EditedWeights, model_fingerprint

GIB = 2**30


@dataclass(frozen=True)
class Method:
    """One method as it is measured: facts per operation, and options beside its preset's."""

    editor: str
    facts: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        over = self.options.get("over") or self.options.get("like")
        return self.editor + (f" ({over})" if over else "") + (f", {self.facts} facts" if self.facts > 1 else "")


#: In the order in which they are run; what takes long to set up (AlphaEdit's eigenvectors) comes last.
METHODS = (
    Method("rome"), Method("memit", 16), Method("kn"), Method("mend", 10), Method("ft"), Method("r_rome"),
    Method("rect", 1, {"over": "rome"}), Method("random", 1, {"like": "rome"}), Method("lora"),
    Method("prune", 16, {"over": "memit"}), Method("emmet", 16), Method("alphaedit", 16),
)  # fmt: skip
#: For --tiny and the small models of the comparison with the CPU.
_WITH_TARGETS = ("rome", "r_rome", "rect", "random", "memit", "emmet", "alphaedit", "prune")
FEW_STEPS: dict[str, dict[str, Any]] = {
    **{name: {"v_num_grad_steps": 4} for name in _WITH_TARGETS},
    "kn": {"steps": 4}, "ft": {"num_steps": 3}, "lora": {"num_steps": 3},
}  # fmt: skip


class OutOfBudget(Exception):
    """Says why something is left out."""


@dataclass
class Clock:
    """The time budget: how much of it the current configuration may use."""

    budget: float
    started: float = field(default_factory=time.perf_counter)
    until: float = 0.0

    def left(self) -> float:
        return self.budget - (time.perf_counter() - self.started)

    def share(self, parts: int) -> None:
        """Give what comes next an equal share of what is left for `parts` parts."""
        self.until = time.perf_counter() + self.left() / parts

    def need(self, seconds: float, what: str) -> None:
        """Raises OutOfBudget: it would not fit."""
        left = self.until - time.perf_counter()
        if seconds > left:
            raise OutOfBudget(f"time budget: {what} about {seconds:.0f} s, {max(left, 0):.0f} s left for this model")


def synchronise(device: str) -> None:
    """Wait until the device has done everything it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: str) -> tuple[Any, float]:
    """(result, seconds), with the device idle before and after."""
    synchronise(device)
    started = time.perf_counter()
    result = call()
    synchronise(device)
    return result, time.perf_counter() - started


def allocated(device: str, peak: bool = False) -> float | None:
    """GiB that tensors take, now or at most since the last reset; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)) / GIB


def release(device: str) -> None:
    """Hand freed memory back, and count peaks anew; nothing to do on a CPU."""
    if torch.device(device).type == "cuda":
        gc.collect()  # models and caches hold one another in circles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def recorded(record: dict[str, Any], measure: Callable[[], dict[str, Any]], device: str) -> dict[str, Any]:
    """A record with its measurement, or why there is none: `left_out` if it did not fit, `failed` if it went wrong.

    Whatever goes wrong costs this one measurement: the others may have taken minutes. A device that is broken for good
    fails them all, one by one.
    """
    try:
        release(device)
        return record | measure()
    except OutOfBudget as reason:
        return record | {"left_out": str(reason)}
    except torch.OutOfMemoryError as error:
        return record | {"left_out": f"memory: {str(error).split('. ')[0]}"}
    except Exception as error:
        traceback.print_exc()
        return record | {"failed": in_one_line(error)}


def make_editor(method: Method, config: PretrainedConfig, few_steps: bool, archive: Path) -> Editor:
    """The editor with its preset for this model (by relative depth where there is none)."""
    options = dict(method.options) | (FEW_STEPS.get(method.editor, {}) if few_steps else {})
    if method.editor == "mend":
        published = next((p.options["inner_params"] for p in presets("mend") if p.fits(config)), None)
        names = published or gpu_models.default_inner_params(config)
        if not archive.is_file():
            gpu_models.make_archive(config, names, archive)
        options |= {"archive": str(archive), "inner_params": list(names), "inner_loss": "exact"}
    found, problems = resolve(find_editor(method.editor), config, options)
    if found is None:
        raise UserError(f"{method.label}: {'; '.join(problems)}")
    return found.editor


def make_context(model: PreTrainedModel, tokenizer: Any, editor: Editor, moments: SecondMoments) -> EditContext:
    """A context with as many templates, of the lengths, as the editor would sample."""
    plan, templates = editor.template_plan(), []
    if plan is not None:
        flat = make_templates(plan.length_params)
        templates = [flat[:1], flat[1:]] if plan.nested else flat
    return EditContext(model, tokenizer, Architecture.discover(model), templates, moments)


@dataclass
class Bench:
    """One model shape on one device; second moments and their factors are shared by all dtypes.

    Attributes:
        few_steps: Fewer steps than published, to see that it runs.
        repeats: Edits timed with each method, after one that is not.
        folder: For MEND archives.
        memory: GiB that may be used; None for no limit.
    """

    name: str
    config: PretrainedConfig
    device: str
    clock: Clock
    few_steps: bool
    repeats: int
    folder: Path
    memory: float | None

    def __post_init__(self) -> None:
        self.shape = Shape.of(self.config)
        self.tokenizer = gpu_models.make_tokenizer(self.config)
        self.editors = {
            m.label: make_editor(m, self.config, self.few_steps, self.folder / f"{self.name}.mend") for m in METHODS
        }
        layers = sorted({layer for editor in self.editors.values() for layer in editor.needs_second_moments()})
        self._has_null_spaces = False
        made = gpu_models.make_moments(self.config, layers, self.device)
        on_cpu = {module: moment.cpu() for module, moment in made.items()}  # where those of a file are
        self.moments = SecondMoments(on_cpu, "random keys")

    def run(self, dtype: str, prompts: int) -> Iterator[dict[str, Any]]:
        """One record for each measurement of one dtype."""
        base = {"model": self.name, "dtype": dtype}
        made: list[tuple[PreTrainedModel, str]] = []

        def make() -> dict[str, Any]:
            weights = self.shape.parameters * getattr(torch, dtype).itemsize / GIB
            if self.memory is not None and 1.25 * weights + allocated(self.device) > self.memory:
                raise OutOfBudget(
                    f"memory: {weights:.1f} GiB of weights and a quarter for the work, {self.memory:.1f} GiB at hand"
                )
            model, seconds = seconds_of(
                lambda: gpu_models.make_model(self.config, getattr(torch, dtype), self.device), self.device
            )
            made.append((model, model_fingerprint(model)))
            return {"seconds": seconds, "gib": weights}

        def restored() -> dict[str, Any]:
            ok = model_fingerprint(model) == fingerprint
            return {"ok": ok} | ({} if ok else {"failed": "other bits than before"})

        yield recorded(base | {"what": "model"}, make, self.device)
        if not made:
            return
        ((model, fingerprint),) = made
        yield recorded(base | {"what": "evaluation"}, lambda: self._evaluation(model, prompts), self.device)
        for method in METHODS:
            record = base | {"what": "edit", "method": method.label, "facts": method.facts}
            yield recorded(record, lambda method=method: self._edit(model, method), self.device)
        yield recorded(base | {"what": "restored"}, restored, self.device)

    def _edit(self, model: PreTrainedModel, method: Method) -> dict[str, Any]:
        """Seconds per edit and per fact, memory, and what rounding loses of the last edit."""
        editor = self.editors[method.label]
        expected = estimate(
            self.shape, tasks={}, evaluations=0, loads=0, editor=method.editor, options=editor.describe(),
            operations=[method.facts], weight_bytes=model.dtype.itemsize,
        ).seconds  # fmt: skip
        self.clock.need(expected + self._eigenvector_seconds(method), "estimated to take")
        context = make_context(model, self.tokenizer, editor, self.moments)
        facts = make_facts(method.facts * (self.repeats + 1))
        batches = [facts[i : i + method.facts] for i in range(0, len(facts), method.facts)]
        _, first = seconds_of(lambda: editor.compute(context, batches[0]), self.device)  # warms up, factors C
        self._has_null_spaces |= method.editor == "alphaedit"
        self.clock.need(first, "the first edit took")
        release(self.device)
        before, times = allocated(self.device), []
        for batch in batches[1:]:
            result, seconds = seconds_of(lambda batch=batch: editor.compute(context, batch), self.device)
            times.append(seconds)
            if time.perf_counter() + seconds > self.clock.until:
                break
        peak = allocated(self.device, peak=True)
        weights = EditedWeights(model)
        weights.apply(result.deltas)
        touched = weights.report().values()
        weights.restore()
        return {
            "seconds": statistics.median(times), "edits_timed": len(times), "first_seconds": first,
            "estimated_seconds": expected, "peak_gib": peak, "beside_gib": None if peak is None else peak - before,
            "rounding_loss": max(entry["rounding_loss"] for entry in touched),
            "relative_norm": max(entry["relative_norm"] for entry in touched if entry["weight_norm"]),
            "steps": result.details.get("steps"),
        }  # fmt: skip

    def _eigenvector_seconds(self, method: Method) -> float:
        """What AlphaEdit's first edit adds, extrapolated from a matrix of 2048 by the cube of the width.

        Decompositions reach a small and changing share of a device's speed, so the estimate's FLOP say little of them.
        """
        if method.editor != "alphaedit" or self._has_null_spaces:
            return 0.0
        width = min(self.shape.inner, 2048)
        moment = gpu_models.make_moment(width, 0, self.device).double()
        _, seconds = seconds_of(lambda: torch.linalg.eigh(moment), self.device)
        return len(self.editors[method.label].layers()) * seconds * (self.shape.inner / width) ** 3

    def _evaluation(self, model: PreTrainedModel, prompts: int, batch_size: int = 32) -> dict[str, Any]:
        """Prompts and tokens per second of EditedHFLM on documents as long as the suite's."""
        self.clock.need(0, "an evaluation takes")
        lm = EditedHFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=batch_size)
        requests = gpu_models.make_requests(prompts, self.config.max_position_embeddings)
        instances = [
            make(Instance, "generate_until", {}, request, i, Origin("benchmark", i, 1))
            for i, request in enumerate(requests)
        ]
        lm.generate_until(instances[: 2 * batch_size], disable_tqdm=True)
        release(self.device)
        _, seconds = seconds_of(lambda: lm.generate_until(instances, disable_tqdm=True), self.device)
        tokens = sum(len(prompt.split()) + arguments["max_gen_toks"] for prompt, arguments in requests)
        return {
            "seconds": seconds, "prompts": prompts, "tokens": tokens, "batch_size": batch_size,
            "prompts_per_second": prompts / seconds, "tokens_per_second": tokens / seconds,
            "peak_gib": allocated(self.device, peak=True),
        }  # fmt: skip


def agreement(name: str, config: PretrainedConfig, device: str, folder: Path, clock: Clock) -> Iterator[dict[str, Any]]:
    """The same float32 edits on the CPU and on the device: the largest relative difference of a parameter's delta.

    ROME's and MEMIT's optimisation feeds its rounding back into itself, so their figure grows with the steps.
    """
    model = gpu_models.make_model(config, torch.float32, "cpu")
    tokenizer = gpu_models.make_tokenizer(config)
    for given in METHODS:
        # Dropout is drawn on the device, which has other random numbers than the CPU.
        options = dict(given.options) | ({"lora_dropout": 0.0} if given.editor == "lora" else {})
        method = Method(given.editor, min(given.facts, 4), options)

        def compare(method: Method = method) -> dict[str, Any]:
            clock.need(0, "the comparison with the CPU takes")
            editor = make_editor(method, config, True, folder / f"small-{name}.mend")
            made = gpu_models.make_moments(config, editor.needs_second_moments(), "cpu")
            moments, deltas = SecondMoments(made, "random keys"), []
            for place in ("cpu", device):
                context = make_context(model.to(place), tokenizer, editor, moments)
                found = editor.compute(context, make_facts(method.facts)).deltas
                deltas.append({name: delta.dense(torch.float64, "cpu") for name, delta in found.items()})
            return {"relative_error": relative_error(*reversed(deltas))}

        yield recorded(
            {"model": name, "dtype": "float32", "what": "agreement", "method": method.label}, compare, device
        )
