"""One loaded model, evaluated again and again on the same tasks: `lm_eval` without what it repeats for every run.

The harness's command finds its tasks, reads their data, builds and tokenises the requests, and asks the machine about
itself, for every point of a curve. Here all that happens once; what is left is the model. The figures and files are
those of the command: same evaluation, same seeds, same records.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from lm_eval_edit._startup import hooks as _hooks
from lm_eval_edit.errors import UserError, in_one_line, nearest
from lm_eval_edit.harness.our_tasks import all_ours, our_names
from lm_eval_edit.harness.remembered import remember_requests, remember_tokens
from lm_eval_edit.harness.run_records import BOOTSTRAP, SEEDS, RunRecorder, global_seeds
from lm_eval_edit.tasklib.editing import documents as editing_documents

logger = logging.getLogger("lm_eval_edit")

#: Tasks about the facts of the schedule itself, and their groups.
ABOUT_SCHEDULE = frozenset({*editing_documents.GROUPS, *(f"edithurt_{kind}" for kind in editing_documents.KINDS)})


@dataclass(frozen=True)
class Manner:
    """What stands around the questions.

    Attributes:
        num_fewshot: Task or group -> examples before each question.
        apply_chat_template: Whether prompts go through the model's chat template.
        fewshot_as_multiturn: Whether examples are turns of the chat.
    """

    num_fewshot: Mapping[str, int] = field(default_factory=dict)
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False


AS_IT_IS = Manner()


@dataclass
class Evaluation:
    """What one evaluation gave.

    Attributes:
        results: As in a results file of the harness; None where every task failed.
        samples: Task -> lines of its samples file.
        failed: Task -> its error, for tasks that could not be evaluated.
    """

    results: dict[str, Any] | None
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def task_manager(names: Sequence[str], include_path: str | None, metadata: Mapping[str, Any]) -> TaskManager:
    """The harness's index of tasks; of ours alone, which is a thousand times quicker, where no other is asked for."""
    _hooks.connect()
    ours = include_path is None and all_ours(names, our_names())
    with _hooks.only_our_tasks() if ours else nullcontext():
        return TaskManager(include_path=include_path, metadata=dict(metadata))


def find_tasks(names: Sequence[str], include_path: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and patterns -> (tasks and groups about the model, those about a schedule's own facts).

    Raises:
        UserError: a name that no task or group has.
    """
    manager = task_manager(names, include_path, {})
    found: list[str] = []
    for name in names:
        with _hooks.only_names():
            matches = manager.match_tasks([name])
        if not matches:
            raise UserError(f"no task or group is called {name!r}.{nearest(name, manager.all_tasks)}")
        found += [match for match in matches if match not in found]
    return (
        tuple(name for name in found if name not in ABOUT_SCHEDULE),
        tuple(name for name in found if name in ABOUT_SCHEDULE),
    )


class Evaluator:
    """Evaluates one model; knows its tasks, their requests and tokens.

    Args:
        lm: The model, an `EditedHFLM` or a `harness.served.ServedModel`. What it is asked is tokenised once.
        general: Tasks and groups about the model.
        about_schedule: Tasks and groups about a schedule's own facts.
        model_args: What `--model_args` would say about loading the model.
        limit: Documents per task.
        include_path: A folder of further tasks.
        batch_size: As recorded in results.
        manner: What stands around the questions.
        model_type: As `--model` would say, for the results.
    """

    def __init__(
        self,
        lm: Any,
        general: Sequence[str],
        about_schedule: Sequence[str],
        model_args: Mapping[str, Any],
        *,
        limit: int | None,
        include_path: str | None,
        batch_size: int,
        log_samples: bool = True,
        manner: Manner = AS_IT_IS,
        model_type: str = _hooks.MODEL_TYPE,
    ):
        self.model_type, self.limit, self.batch_size, self.log_samples = model_type, limit, batch_size, log_samples
        self.include_path, self.manner = include_path, manner
        self.about_schedule = tuple(about_schedule)
        self._loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        self._unloadable: dict[str, str] = {}
        if general:
            self._loaded, self._unloadable = self._load_each(task_manager(general, include_path, model_args), general)
            for task in self._loaded["tasks"].values():
                remember_requests(task)
        self._recorder = RunRecorder(model_type)
        self.take(lm)

    def take(self, lm: Any) -> None:
        """Evaluate this model from now on, on the tasks and requests that are there."""
        self.lm = lm
        remember_tokens(lm)

    def run(self, model_args: Mapping[str, Any], *, general: bool = True, schedule: bool = False) -> Evaluation:
        """Evaluate the model as it stands.

        Args:
            model_args: What `--model_args` would say about the model and its edits: goes into the results, and tells
                the tasks about a schedule which facts they are about.
            general: Whether to evaluate the tasks about the model.
            schedule: Whether to evaluate the tasks about the schedule's own facts.
        """
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        failed: dict[str, str] = {}
        if general:
            loaded = {key: dict(value) for key, value in self._loaded.items()}
            failed |= self._unloadable
        if schedule and self.about_schedule:
            try:
                # These few files are read anew: their documents are another prefix of the facts in every cell. They
                # are ours, and a folder of other tasks, for which the harness makes its whole index, is not asked.
                manager = task_manager(self.about_schedule, None, model_args)
                found, missing = self._load_each(manager, self.about_schedule)
                failed |= missing
                for key, value in found.items():
                    loaded[key] = {**loaded.get(key, {}), **value}
            except Exception as error:  # a task of a group may fail in many ways; the others go on
                failed |= dict.fromkeys(self.about_schedule, in_one_line(error))
        template = self.lm.chat_template(True) if self.manner.apply_chat_template else None
        clock = self._recorder.start(model_args, template, self.manner.fewshot_as_multiturn)
        results, more = self._evaluate(loaded)
        failed |= more
        if results is None:
            return Evaluation(None, {}, failed)
        plain, samples = self._recorder.finish(clock, self.lm, results, self._config(model_args))
        return Evaluation(plain, samples, failed)

    # --------------------------------------------------------------------------------------------------------- details

    def _load_each(self, manager: TaskManager, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """All tasks at once or, where one of them cannot be loaded, one name after another without that one.

        Returns:
            What is loaded; name -> its error, for those that are not.
        """
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        failed: dict[str, str] = {}
        try:
            return self._load(manager, names), failed
        except Exception as first:
            for name in names:
                try:
                    found = self._load(manager, [name])
                except Exception as error:  # a data set that is not there, a task's own code: the others go on
                    logger.warning("task %s cannot be loaded: %s", name, in_one_line(error))
                    failed[name] = in_one_line(error)
                    continue
                loaded = {key: {**value, **found.get(key, {})} for key, value in loaded.items()}
            if not failed:
                raise first  # each loads alone and all together do not: nothing that leaving one out would mend
        return loaded, failed

    def _load(self, manager: TaskManager, names: Sequence[str]) -> dict[str, Any]:
        loaded = manager.load(list(names))
        self._set_examples(loaded)
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEEDS["fewshot_seed"])
        return loaded

    def _set_examples(self, loaded: dict[str, Any]) -> None:
        """The number of examples of each task; as in the harness, a task that says 0 itself keeps to it."""
        for name, count in self.manner.num_fewshot.items():
            group, task = loaded["groups"].get(name), loaded["tasks"].get(name)
            for each in group.get_all_tasks() if group is not None else [task] if task is not None else []:
                if each.get_config("num_fewshot") != 0:
                    each.set_config(key="num_fewshot", value=count)

    def _evaluate(self, loaded: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """All tasks in one go, which batches best; if that fails, without the tasks that fail alone."""
        if not loaded["tasks"]:
            return None, {}
        try:
            return self._harness(loaded), {}
        except Exception as first:
            failed = {}
            for name, task in loaded["tasks"].items():
                try:
                    self._harness({"tasks": {name: task}, "groups": {}, "group_map": {}})
                except Exception as error:
                    logger.warning("task %s failed: %s", name, in_one_line(error))
                    failed[name] = in_one_line(error)
            if not failed:  # each works alone: what failed is the evaluation as such
                raise first
            kept = {name: task for name, task in loaded["tasks"].items() if name not in failed}
            if not kept:
                return None, failed
            # A group without one of its members would be the mean of something else.
            groups = {
                name: group
                for name, group in loaded["groups"].items()
                if not {task.task_name for task in group.get_all_tasks()} & failed.keys()
            }
            return self._harness({"tasks": kept, "groups": groups, "group_map": loaded.get("group_map", {})}), failed

    def _harness(self, loaded: dict[str, Any]) -> dict[str, Any]:
        with global_seeds():
            return lm_eval.evaluate(
                self.lm,
                loaded,
                limit=self.limit,
                bootstrap_iters=BOOTSTRAP,
                log_samples=self.log_samples,
                apply_chat_template=self.manner.apply_chat_template,
                fewshot_as_multiturn=self.manner.fewshot_as_multiturn,
            )

    def _config(self, model_args: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model_type,
            "model_args": dict(model_args),
            **self.lm.get_model_info(),
            "batch_size": self.batch_size,
            "batch_sizes": list(getattr(self.lm, "batch_sizes", {}).values()),
            "device": str(self.lm.device),
            "use_cache": None,
            "limit": self.limit,
            "bootstrap_iters": BOOTSTRAP,
            "gen_kwargs": None,
            **SEEDS,
        }
