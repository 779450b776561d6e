"""Adapter to EasyEdit: any of its methods that changes weights, as one of our editors (`editor=easyeditor:ROME`).

Wang et al., *EasyEdit: An Easy-to-use Knowledge Editing Framework for Large Language Models*, ACL 2024 system
demonstrations (arXiv 2308.07269), https://github.com/zjunlp/EasyEdit. The package `easyeditor` is found on the Python
path or in the clone `easyedit_path`; docs/easyeditor.md says what it needs and what was tried.

EasyEdit edits the model in place and keeps state in module globals. Here it works on borrowed ground: the difference of
the weights is taken as the result, everything else is put back.
"""

from __future__ import annotations

import functools
import inspect
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit._support.files import hash_json, sha256
from lm_eval_edit.editors._shared.difference import difference
from lm_eval_edit.editors._shared.isolation import ModelSnapshot, process_kept, seed_everything
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, option
from lm_eval_edit.editors.easyeditor.keys import added_keys, earlier_keys
from lm_eval_edit.editors.easyeditor.running import executor_kept, fresh_globals, import_package, model_fields, padding
from lm_eval_edit.editors.named_by_data import refuse_code_of_data
from lm_eval_edit.editors.templates import TemplatePlan
from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.weights.edited import wide_dtype

logger = logging.getLogger(__name__)

_ADAPTER = "it trains an adapter that stays beside the weights; use editor=lora"
_MEMORY = "it keeps edits in a memory beside the weights"
_WITHOUT_WEIGHTS = {
    "GRACE": _MEMORY, "WISE": _MEMORY, "DEFER": _MEMORY, "SERAC": _MEMORY, "MELO": _MEMORY,
    "IKE": "it puts examples before the prompt", "FT-Api": "it calls a paid service",
    "DeepEdit-Api": "it calls a paid service", "LoRA": _ADAPTER, "QLoRA": _ADAPTER, "DPO": _ADAPTER,
    "DINM": "it wants unsafe and safe answers, not facts",
    "SimIE": "it keeps its state in its own hyper-parameters; run its base method",
}  # fmt: skip
_FLAT = {"ROME", "R-ROME"}  # families by the context templates they keep in CONTEXT_TEMPLATES_CACHE
_NESTED = {"MEMIT", "MEMIT-FE", "EMMET", "EAMET", "PMET", "AlphaEdit", "SPHERE"}
_BATCHES = _NESTED | {"CORE", "MEND", "FT", "ULTRAEDIT"}
_RIGHT_PADDED = _FLAT | _NESTED - {"MEMIT-FE", "PMET"} | {"CORE"}  # EasyEdit pads the others on the left


@dataclass(frozen=True)
class EasyEditOptions:
    """Where the package is, and its own hyper-parameters."""

    easyedit_path: str | None = option("a clone of zjunlp/EasyEdit; default: the Python path", default=None)
    hparams: Mapping[str, Any] | None = option("the hyper-parameters, by EasyEdit's names", default=None)


class EasyEdit(Editor):
    """One method of the package `easyeditor`; `with_parameter` says which."""

    name = "easyeditor"
    not_in_chat = "EasyEdit puts its own texts around a prompt and knows of no turns; use the package's own methods"
    not_routed = "EasyEdit's methods edit linear maps"
    summary = "any weight-changing method of the EasyEdit package: easyeditor:ROME, easyeditor:PMET, ..."
    source = "Wang et al. 2024, arXiv 2308.07269"
    Options = EasyEditOptions
    other_options = "hparams"
    longest_object = None  # the method decides
    method: ClassVar[str] = ""

    @classmethod
    @functools.cache
    def with_parameter(cls, parameter: str) -> type[Editor]:
        if parameter in _WITHOUT_WEIGHTS:
            raise UserError(f"editor=easyeditor:{parameter} gives no weight update: {_WITHOUT_WEIGHTS[parameter]}")
        body = {"name": f"easyeditor:{parameter}", "method": parameter, "batches": parameter in _BATCHES}
        return type(f"EasyEdit_{parameter}", (cls,), body | {"easyedit_name": parameter})

    def __init__(self, options: EasyEditOptions):
        super().__init__(options)
        if not self.method:
            raise UserError("editor=easyeditor: which method? Give its name, as in editor=easyeditor:ROME")
        if options.easyedit_path is not None:
            refuse_code_of_data(str(options.easyedit_path), f"easyedit_path={options.easyedit_path}")
        methods, self._package = import_package(options.easyedit_path)
        if self.method not in methods:
            known = sorted(set(methods) - set(_WITHOUT_WEIGHTS))
            raise UserError(
                f"editor=easyeditor:{self.method}: no such method in {self._package}."
                f"{nearest(self.method, known)} It has {', '.join(known)}"
            )
        self._apply = methods[self.method]
        self._hparams_class = inspect.signature(self._apply).parameters["hparams"].annotation
        self._given = dict(options.hparams or {})
        for name in {"stats_dir", "P_loc", "archive"} & set(self._given):
            self._given[name] = str(Path(self._given[name]).expanduser().resolve())  # the call runs in another folder
        self._folder = tempfile.TemporaryDirectory(prefix="easyeditor-")  # EasyEdit leaves files where it runs
        self._hparams(model_fields())  # a mistake in them is told now, before the model is loaded

    def describe(self) -> dict[str, Any]:
        sources = sorted(self._package.rglob("*.py"))
        digest = hash_json([[str(p.relative_to(self._package)), sha256(p.read_bytes())] for p in sources])
        return {"hparams": self._given, "easyeditor_sources": digest}

    def layers(self) -> list[int]:
        return [int(layer) for layer in self._given.get("layers") or ()] if "layers" in self._field_names() else []

    def parameters(self, model: PreTrainedModel, architecture: Architecture) -> list[str] | None:
        """Those of the modules that its hyper-parameters name; None for a method that is not told them there."""
        if inner := self._given.get("inner_params"):
            return [str(name) for name in inner]
        if self.method == "KN":
            return [architecture.weight(layer) for layer in range(architecture.n_layers)]
        if "rewrite_module_tmp" not in self._field_names() or not self.layers():
            return None
        wanted = self._given.get("rewrite_module_tmp")
        modules = [wanted.format(layer) if wanted else architecture.down_projections[layer] for layer in self.layers()]
        if self.method == "FT":  # it trains every parameter whose name holds the module's
            return [name for name, _ in model.named_parameters() if any(module in name for module in modules)]
        return [f"{module}.weight" for module in modules]

    def file_problems(self, model: Callable[[], PreTrainedModel]) -> list[str]:
        archive = self._given.get("archive")
        if archive is None or Path(archive).is_file():
            return []
        return [f"easyeditor:{self.method}: archive={archive}: no such file"]

    def template_plan(self) -> TemplatePlan | None:
        if self.method in _FLAT:
            lengths = self._given.get("context_template_length_params", ((5, 10), (10, 10)))
            return TemplatePlan(tuple((int(tokens), int(count)) for tokens, count in lengths))
        return TemplatePlan(((10, 5),), nested=True, braces=" ") if self.method in _NESTED else None

    def needs_second_moments(self) -> list[int]:
        used = "mom2_dataset" in self._field_names()
        return self.layers() if used and (self.method not in _FLAT or self._given.get("mom2_adjustment")) else []

    def fact_problem(self, fact: Fact) -> str | None:
        if reason := super().fact_problem(fact):
            return reason
        if fact.target[:1] != " " or fact.target[1:2].isspace():
            return "EasyEdit puts one space between prompt and object, and this fact has something else there"
        if set("{}") & set("".join(fact.template.sides)):
            return "EasyEdit takes the braces in the prompt for the subject's place"
        if self.method == "KN" and not (fact.target_true or fact.prediction):
            return "KN needs the present answer: a prediction (ZsRE's pred) or the true target"
        return None

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        model, hparams = context.model, self._hparams(model_fields(context))
        requests = [_request(fact, index) for index, fact in enumerate(facts)]
        snapshot = ModelSnapshot(model)
        try:
            with (
                process_kept(logger, Path(self._folder.name), wide_dtype(model.dtype)),
                executor_kept(self._apply),
                padding(context.tokenizer, "right" if self.method in _RIGHT_PADDED else "left"),
                fresh_globals(self._apply, self._prepared(context, history)) as method_globals,
                torch.enable_grad(),
            ):
                seed_everything(context.seed + len(history))  # a resumed run draws what the whole one would have
                started = time.perf_counter()
                self._apply(model, context.tokenizer, requests, hparams, copy=False, return_orig_weights=True)
                details = {"seconds": time.perf_counter() - started}  # without the adapter's own copying
                changed = snapshot.changed(model)
                state = added_keys(method_globals.get("cache_c"), history)
        except Exception as error:
            raise UserError(
                f"EasyEdit's {self.method} failed on fact(s) {', '.join(str(fact.id) for fact in facts[:3])}: "
                f"{type(error).__name__}: {error}. The model is as it was. Hyper-parameters for another model, or a "
                f"fact that the method cannot read, are the usual reasons"
            ) from error
        finally:
            snapshot.restore()
        deltas = {name: difference(snapshot.weights[name], after) for name, after in changed.items()}
        return EditResult(deltas, details, state)

    def _hparams(self, model_fields: Mapping[str, Any]) -> Any:
        """EasyEdit's own object of hyper-parameters, read by EasyEdit: what was given, the rest from the model."""
        accepted = self._field_names()
        values = {n: v for n, v in model_fields.items() if n in accepted} | self._given | {"alg_name": self.method}
        if "device" in accepted:
            values["device"] = model_fields["device"]
        file = Path(self._folder.name, "hparams.yaml")
        file.write_text(yaml.safe_dump(values))
        try:
            with process_kept(logger):
                return self._hparams_class.from_hparams(str(file))
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            unknown = [f"{n}:{near}" for n in self._given if n not in accepted and (near := nearest(n, accepted))]
            raise UserError(
                f"easyeditor:{self.method}: {error}.{' '.join(['', *unknown])} Its hyper-parameters are those of "
                f"hparams/{self.method} in the clone: give such a file as edit_config"
            ) from None

    def _prepared(self, context: EditContext, history: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """Module globals that EasyEdit would fill for itself, with network access or from global random numbers."""
        name = context.model.config._name_or_path.replace("/", "_")
        modules = [context.architecture.down_projections[layer] for layer in self.needs_second_moments()]
        moments = {(name, module): context.second_moments[module].float().cpu() for module in modules}
        prepared = {
            "CONTEXT_TEMPLATES_CACHE": context.context_templates or None,
            "COV_CACHE": moments,
            "inv_mom2_cache": {key: torch.inverse(moment) for key, moment in moments.items()},  # float32, as EasyEdit's
        }
        keys = earlier_keys(history)
        return prepared if keys is None else prepared | {"cache_c": keys, "cache_c_new": True}

    def _field_names(self) -> list[str]:
        return [f.name for f in fields(self._hparams_class)]


def _request(fact: Fact, index: int) -> dict[str, Any]:
    """A fact as EasyEdit wants it: the prompt in clear, the target without its leading space."""
    return {
        "case_id": index,
        "prompt": fact.text,
        "subject": fact.subject,
        "target_new": fact.target_new.lstrip(),
        "ground_truth": fact.prediction or fact.target_true,
        "portability": {},
        "locality": {},
    }
