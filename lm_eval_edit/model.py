"""`--model edited_hf`: a Hugging Face model of the harness with a schedule of edits applied to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit import demo
from lm_eval_edit._support import interrupts as _interrupts
from lm_eval_edit._support.logging import log_safely
from lm_eval_edit.edits.ledger import Ledger
from lm_eval_edit.edits.needed_moments import collected_where_missing
from lm_eval_edit.edits.processes import Processes, SharedRun, join_processes, launched_together
from lm_eval_edit.edits.record import edit_record
from lm_eval_edit.edits.run import EditRun, begin_editing
from lm_eval_edit.edits.source import describe_source, refuse_offloaded
from lm_eval_edit.edits.states import answer_by_state, wanted_state
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.chat import chat_frame
from lm_eval_edit.facts.skipped import reasons
from lm_eval_edit.harness import loading
from lm_eval_edit.harness.endings import Listener, listening
from lm_eval_edit.harness.exact_model import ExactHFLM
from lm_eval_edit.harness.response_cache import keep_apart
from lm_eval_edit.models import gguf
from lm_eval_edit.plan import EditPlan, draft_plan, make_plan
from lm_eval_edit.settings import AFTER_ALL, NAMES
from lm_eval_edit.tasklib.editing.agreement import check_asked
from lm_eval_edit.weights.fingerprint import model_fingerprint

logger = logging.getLogger("lm_eval_edit")
log_safely()  # ids of facts, names of tasks


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
        edit_chat_template: bool = False,
        edit_when: str = AFTER_ALL,
        edit_facts_for: str | None = None,
        snippets: str | None = None,
        min_success: float | None = None,
        data_dir: str | None = None,
        items: int | str | None = None,
        **kwargs: Any,
    ):
        given = locals()
        _interrupts.keep(_kept(edit_ledger))
        plan = make_plan(pretrained, {name: given[name] for name in NAMES}, kwargs)
        join_processes()
        options = loading.demo_batches(pretrained, plan.model_options)
        if isinstance(plan.pretrained, str) and not launched_together():
            options["device"] = loading.device(options.get("device"))
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
    def option_problems(model_args: Mapping[str, Any]) -> list[str]:
        """What is wrong with the options of a run, as sentences, without loading weights.

        Args:
            model_args: As the harness hands them over: our options and HFLM's.
        """
        others = {name: value for name, value in model_args.items() if name not in (*NAMES, "pretrained")}
        ours = {name: model_args[name] for name in NAMES if name in model_args}
        return draft_plan(model_args.get("pretrained", demo.NAME), ours, others)[1]

    def _connect(self) -> Processes | None:
        """The processes that evaluate this model together, all with the same weights; None for a single one."""
        processes = Processes.connected()
        if processes is not None:
            processes.check_same_weights(self.model)
            if not processes.is_first:
                logger.setLevel(logging.ERROR)  # the first process says it for all
            loading.divide_documents(self, processes.rank, processes.size)
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
        assert plan.hyperparameters is not None and plan.facts is not None and plan.second_moments is not None, (
            "a plan with an editor has them, or it has problems and no model is loaded for it"
        )
        for notice in plan.hyperparameters.notices:
            logger.warning(notice)
        if plan.facts.skipped:
            count = len(plan.facts.skipped)
            why = reasons(plan.facts.skipped)
            logger.warning("%d of %d facts cannot be edited and are skipped: %s", count, count + len(plan.facts), why)
        for warning in plan.repetitions.warnings():
            logger.warning(warning)
        settings, editor = plan.settings, plan.hyperparameters.editor
        moments = collected_where_missing(
            self.model,
            self.tokenizer,
            editor,
            plan.second_moments,
            settings.edit_corpus,
            settings.edit_corpus_tokens,
        )
        return begin_editing(
            self.model,
            self.tokenizer,
            editor,
            plan.operations,
            edit_batch_size=settings.edit_batch_size,
            second_moments=moments.regularised(settings.edit_mom2_regularisation),
            chat=chat_frame(self.tokenizer, self.chat_template_args) if settings.edit_chat_template else None,
            directory=Path(settings.edit_ledger) if settings.edit_ledger else None,
            seed=settings.edit_seed or 0,
            min_success=settings.min_success,
        )

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
        """As in HFLM, each text with what its tokens tell of its end (`harness.outputs.Output`)."""
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
        n_edits = self.ledger.applied_totals()[0] if self.ledger else 0
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

    @property
    def unedited_fingerprint(self) -> str:
        """A hash of the weights before any edit: the ledger's, where an earlier version's has a hash of its own."""
        ledger = self.ledger
        return ledger.identity["model"]["fingerprint"] if ledger is not None else self._base_fingerprint

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """As in HFLM, with the response cache (`--use_cache`) kept apart for each state of the weights."""
        self._name_cache(cache_hook)
        super().set_cache_hook(cache_hook)

    def _name_cache(self, cache_hook: CacheHook) -> None:
        keep_apart(cache_hook, self.weights_fingerprint)

    # --------------------------------------------------------------------------------------------------------- results

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's model information and, under `edit`, what was edited and how it went."""
        return super().get_model_info() | {"edit": self.edit_record()}

    def edit_record(self) -> dict[str, Any]:
        """The `edit` block of the results: plan, norms, guards, efficacy, fingerprints and versions."""
        plan = self.plan
        return edit_record(
            plan.settings,
            plan.hyperparameters,
            plan.facts,
            plan.repetitions,
            self.ledger,
            model=describe_source(self.model),
            weights_fingerprint=self.weights_fingerprint,
            unedited_fingerprint=self.unedited_fingerprint,
        )
