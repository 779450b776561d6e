"""`--model edited_hf`: a Hugging Face model of the harness with a schedule of edits applied to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit import demo
from lm_eval_edit._support import interrupts as _interrupts
from lm_eval_edit._support.logging import log_safely
from lm_eval_edit._support.versions import versions
from lm_eval_edit.edits.ledger import Ledger
from lm_eval_edit.edits.processes import Processes, SharedRun, join_processes
from lm_eval_edit.edits.run import EditRun, begin_editing
from lm_eval_edit.edits.source import describe_source, refuse_offloaded
from lm_eval_edit.edits.states import answer_by_state, wanted_state
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.skipped import reasons
from lm_eval_edit.harness.endings import Listener, listening
from lm_eval_edit.harness.exact_model import ExactHFLM
from lm_eval_edit.models import gguf
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.devices import find_device
from lm_eval_edit.moments.collect import collect_second_moments
from lm_eval_edit.moments.corpus import load_corpus
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.plan import EditPlan, make_plan
from lm_eval_edit.settings import AFTER_ALL, NAMES
from lm_eval_edit.tasklib.editing.agreement import check_asked
from lm_eval_edit.weights.edited import model_fingerprint

logger = logging.getLogger("lm_eval_edit")
log_safely()  # ids of facts, names of tasks


DEMO_BATCH_SIZE = 32


def _demo_batches(pretrained: str | PreTrainedModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """HFLM's options, with a batch size for the demo model where none was chosen.

    The command line always sends one, 1 unless told otherwise, and one prompt at a time takes the demo minutes.
    """
    options = dict(options)
    if isinstance(pretrained, str) and pretrained == demo.NAME and options.get("batch_size") in (None, 1, "1"):
        logger.info("the demo model is evaluated in batches of %d", DEMO_BATCH_SIZE)
        options["batch_size"] = DEMO_BATCH_SIZE
    return options


def _device(given: str | None) -> str:
    """HFLM's option `device`. Its own default is a GPU whether there is one or not, and the command line always sends
    cuda:0, which the harness takes for no choice where there is none."""
    unsaid = given is None or (given == "cuda:0" and not torch.cuda.is_available())
    return find_device(None if unsaid else given)


def _kept(edit_ledger: Any) -> str:
    """What an interrupted run leaves."""
    if edit_ledger in (None, "none"):
        return "nothing is kept (edit_ledger=FOLDER would keep the edits); the same command starts anew"
    return f"the edits made so far are kept in {edit_ledger}; the same command replays them and continues"


@register_model("edited_hf")
class EditedHFLM(ExactHFLM):
    """HFLM whose model has been edited. Every argument of HFLM passes through; ours are described in `EditSettings`.

    Without `pretrained`, or with `pretrained=demo`, the embedded demo world is used: its model, facts and task data.
    `pretrained=smollm2` is a small real model (extra `smollm2`), with well-known facts to edit.

    Attributes:
        plan: What is edited and how; of the schedule taken up last.

    Raises:
        ConfigurationError: every problem of the options, before the weights load.
        EditError: an edit failed its guards, or the processes of one launch hold different weights.

    Started in several processes (`accelerate launch`, `torchrun`), one model is edited in all of them: `begin`, `apply`
    and `restore` are then called by all, in the same order. See `lm_eval_edit.edits.processes`.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel = demo.NAME,
        *,
        editor: str | None = "none",
        n_edits: int = 1,
        edit_batch_size: int = 1,
        edit_dataset: str | None = None,
        edit_seed: int | None = 0,
        edit_offset: int = 0,
        edit_layers: int | str | list[int] | None = None,
        edit_config: str | dict[str, Any] | None = None,
        edit_ledger: str | None = None,
        edit_second_moments: str | None = None,
        edit_corpus: str | None = None,
        edit_corpus_tokens: int = 200_000,
        edit_mom2_regularisation: float = 0.0,
        edit_when: str = AFTER_ALL,
        edit_facts_for: str | None = None,
        min_success: float | None = None,
        data_dir: str | None = None,
        **kwargs: Any,
    ):
        given = locals()
        _interrupts.keep(_kept(edit_ledger))
        plan = make_plan(pretrained, {name: given[name] for name in NAMES}, kwargs)
        join_processes()
        options = _demo_batches(pretrained, plan.model_options)
        if isinstance(plan.pretrained, str) and not self._launched_together():
            options["device"] = _device(options.get("device"))
        super().__init__(pretrained=plan.pretrained, **options)
        refuse_offloaded(self.model)
        if options.get("gguf_file"):
            gguf.made_ordinary(self.model, str(options["gguf_file"]))
        self._run: EditRun | SharedRun | None = None
        self._processes = self._connect()
        self._base_fingerprint = model_fingerprint(self.model)
        self.begin(plan)
        self.apply()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> EditedHFLM:
        """As in HFLM. The harness keeps this very dict for its results, so the demo model is named there too."""
        arg_dict.setdefault("pretrained", demo.NAME)
        return super().create_from_arg_obj(arg_dict, additional_config)

    @staticmethod
    def _launched_together() -> bool:
        """Whether a launcher started several processes, which are given their devices."""
        return int(os.environ.get("WORLD_SIZE") or 1) > 1

    def _connect(self) -> Processes | None:
        """The processes that evaluate this model together, all with the same weights; None for a single one.

        The harness divides the documents among them only where it sees several GPUs; here it always does. It also
        counts processes on each machine anew, so that two machines would do the same documents twice.
        """
        processes = Processes.connected()
        if processes is not None:
            processes.check_same_weights(self.model)
            if not processes.is_first:
                logger.setLevel(logging.ERROR)  # the first process says it for all
            if hasattr(self, "accelerator"):  # not for a model object, which the harness gathers no results of
                self._rank, self._world_size = processes.rank, processes.size
        return processes

    # ---------------------------------------------------------------------------------------------- schedules of edits

    def begin(self, plan: EditPlan) -> None:
        """Take up a schedule of edits in place of the present one, from the unedited weights; `apply` carries it out.

        Args:
            plan: For this very model (`make_plan`); what it says of loading is not looked at.

        Raises:
            UserError: second moments are missing, or the ledger's folder belongs to another run.
        """
        _interrupts.keep(_kept(plan.settings.edit_ledger))
        self.restore()
        self.plan = plan
        self._run = None
        if plan.hyperparameters is not None and self._processes is not None:
            self._run = SharedRun.begin(
                self._processes, self.model, plan.hyperparameters.editor, lambda: self._begin(plan)
            )
        elif plan.hyperparameters is not None:
            self._run = self._begin(plan)

    def _begin(self, plan: EditPlan) -> EditRun:
        for notice in plan.hyperparameters.notices:
            logger.warning(notice)
        if plan.facts.skipped:
            count = len(plan.facts.skipped)
            why = reasons(plan.facts.skipped)
            logger.warning("%d of %d facts cannot be edited and are skipped: %s", count, count + len(plan.facts), why)
        for warning in plan.repetitions.warnings():
            logger.warning(warning)
        settings = plan.settings
        return begin_editing(
            self.model,
            self.tokenizer,
            plan.hyperparameters.editor,
            plan.operations,
            edit_batch_size=settings.edit_batch_size,
            second_moments=self._second_moments(plan),
            directory=Path(settings.edit_ledger) if settings.edit_ledger else None,
            seed=settings.edit_seed or 0,
            min_success=settings.min_success,
        )

    def _second_moments(self, plan: EditPlan) -> SecondMoments:
        """Those of the plan; where some that are needed are missing and there is a corpus, all are computed from it."""
        moments, settings = plan.second_moments, plan.settings
        layers = plan.hyperparameters.editor.needs_second_moments()
        if layers and settings.edit_corpus:
            projections = Architecture.discover(self.model).down_projections
            if any(projections[layer] not in moments for layer in layers):
                corpus = load_corpus(settings.edit_corpus)
                moments = collect_second_moments(
                    self.model, self.tokenizer, layers, corpus, settings.edit_corpus_tokens
                )
        return moments.regularised(settings.edit_mom2_regularisation)

    @property
    def ledger(self) -> Ledger | None:
        """The edits done; None with editor=none."""
        return None if self._run is None else self._run.ledger

    def apply(self, n_operations: int | None = None) -> None:
        """Bring the weights to the state after the schedule's first n operations (default: all).

        Operations that have not been done yet are computed; earlier ones never again.

        Raises:
            EditError: an edit failed its guards; the weights are the unedited ones.
        """
        try:
            if self._run is not None:
                self._run.edit_to(n_operations)
        finally:  # an edit that failed leaves other weights too: the unedited ones
            self._name_cache(self.cache_hook)

    def restore(self) -> None:
        """Bring the weights back to the unedited state, bit for bit."""
        if self.ledger is not None:
            self.ledger.restore()
        self._name_cache(self.cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in HFLM, each request in the state of the weights it names (`states.in_state`)."""
        return self._by_state(super().loglikelihood, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As in HFLM, each request in the state of the weights it names (`states.in_state`)."""
        return self._by_state(self._generate, requests, disable_tqdm)

    def _generate(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """As in HFLM, each text with what its tokens tell of its end (`tasklib.outputs.Output`)."""
        with listening(self, edited=self.ledger is not None and self.ledger.applied > 0) as listener:
            texts = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return listener.outputs(requests, texts)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        rows = super()._model_generate(context, max_length, stop, **generation_kwargs)
        if isinstance(self.cache_hook, Listener):
            self.cache_hook.hear(context, generation_kwargs.get("attention_mask"), rows)
        return rows

    def _by_state(self, method: Callable[..., list[Any]], requests: list[Instance], hidden: bool) -> list[Any]:
        stated = any(wanted_state(request) is not None for request in requests)
        if stated and self._processes is not None and self.batch_size == "auto":
            # The search for a size waits for all processes, which may ask for different states of the weights.
            raise UserError("batch_size=auto with tasks about earlier states of the weights: give batch_size a number")
        n_edits = sum(len(o.facts) for o in self.ledger.applied_operations) if self.ledger else 0
        check_asked(requests, self.plan.settings, self.plan.facts, n_edits)
        return answer_by_state(
            requests,
            self.ledger,
            lambda some, hide: method(some, disable_tqdm=hidden or hide),
            lambda: self._name_cache(self.cache_hook),
        )

    @property
    def weights_fingerprint(self) -> str:
        """A hash of the weights as they stand."""
        return self.ledger.fingerprint() if self.ledger is not None else self._base_fingerprint

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """As in HFLM, with the response cache (`--use_cache`) kept apart for each state of the weights.

        The harness keys its cache by the request alone, so an edited model would be served an unedited one's answers.
        """
        self._name_cache(cache_hook)
        super().set_cache_hook(cache_hook)

    def _name_cache(self, cache_hook: CacheHook) -> None:
        database = cache_hook.dbdict
        if database is None:
            return
        # CachingLM looks up and writes through this very object, so its table decides both.
        database.tablename = f"edited_{self.weights_fingerprint[:32]}"
        database.conn.execute(f'CREATE TABLE IF NOT EXISTS "{database.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
        database.conn.commit()

    # --------------------------------------------------------------------------------------------------------- results

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's model information and, under `edit`, what was edited and how it went."""
        return super().get_model_info() | {"edit": self.edit_record()}

    def edit_record(self) -> dict[str, Any]:
        """The `edit` block of the results: plan, norms, guards, efficacy, fingerprints and versions."""
        plan, ledger = self.plan, self.ledger
        record: dict[str, Any] = {
            "editor": plan.settings.editor,
            "n_edits": 0,
            "model": describe_source(self.model),
            "weights_fingerprint": self.weights_fingerprint,
            "versions": versions(),
        }
        if ledger is None:
            return record
        operations = ledger.applied_operations
        n_edits = sum(len(operation.facts) for operation in operations)
        seconds = [operation.record["seconds"] for operation in operations]
        return record | {
            "n_edits": n_edits,
            "edit_batch_size": plan.settings.edit_batch_size,
            "options": plan.hyperparameters.editor.describe(),
            "options_from_model": next((o.record["details"].get("from_model", {}) for o in operations), {}),
            "preset": plan.hyperparameters.preset,
            "layers": plan.hyperparameters.editor.layers(),
            "dataset": {
                "source": plan.facts.source,
                "sha256": plan.facts.sha256,
                "usable": len(plan.facts),
                "skipped": [{"id": skipped.id, "reason": skipped.reason} for skipped in plan.facts.skipped],
                **plan.repetitions.record(),
            },
            "edit_seed": plan.settings.edit_seed,
            "edit_offset": plan.settings.edit_offset,
            "fact_ids": [fact.id for operation in operations for fact in operation.facts],
            "parameters": ledger.weights.report(),
            "ranks": [operation.record["ranks"] for operation in operations],
            "after_each_edit": [operation.record["after"] for operation in operations],
            "before_each_edit": [operation.record["before"] for operation in operations],
            "details": [operation.record["details"] for operation in operations],
            "guards": ledger.guards,
            "seconds_per_edit": sum(seconds) / max(n_edits, 1),
            "second_moments": ledger.extra["second_moments_source"],
            "context_templates": ledger.extra["context_templates"],
            "ledger": str(ledger.directory) if ledger.directory else None,
            "unedited_fingerprint": self._base_fingerprint,
        }
