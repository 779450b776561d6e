"""What lm-eval-edit adds to the LM Evaluation Harness: one model type, one folder of tasks, and readable errors.

The start-up shim `_lm_eval_edit_autoload` calls `register_model`, `add_tasks` and `look_at_chat_templates` when a
program imports those parts of the harness; the command `lm-eval-edit` calls `connect`, which needs no start-up files.
All of them may be called again and again.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_edit._startup import chat
from lm_eval_edit._support.interrupts import PLAIN, Terminated, asked, kept, tell
from lm_eval_edit._support.terminal import printable
from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.harness.our_tasks import all_ours, our_names, tasks_dir

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.tasks.manager import TaskManager

MODEL_TYPE = "edited_hf"
MODEL_TARGET = "lm_eval_edit.model:EditedHFLM"  # a string: the harness imports it, and torch with it, on first use
PROGRAMS = ("lm_eval", "lm-eval", "lm-eval-edit")
PREFIX = "edithurt_"  # of every task and group of ours
MODULES = ("lm_eval.__main__", "lm_eval_edit.__main__")

_ADDING = "adds_tasks_of"  # a mark on the harness's method, so that it is changed once

_default_tasks_wanted = True
_named: ContextVar[list[str] | None] = ContextVar("named", default=None)  # the tasks that a command line names, so far


def connect() -> None:
    """Import the two parts of the harness that are extended and extend them now, start-up files or not."""
    register_model()
    add_tasks()


def look_at_chat_templates() -> None:
    """Let the harness's `simple_evaluate` look at the model's chat template before the model loads."""
    print_user_errors_plainly()
    chat.look_before_loading(PREFIX, MODEL_TYPE)


def register_model() -> None:
    """Make `--model edited_hf` known, without importing it.

    The built-in models must be there first: the harness fills its registry only while it is empty.
    """
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    print_user_errors_plainly()
    if MODEL_TYPE not in model_registry:  # a harness that reads our entry point has been here already
        model_registry.register(MODEL_TYPE, target=MODEL_TARGET)


def add_tasks() -> None:
    """Make every `TaskManager` that indexes the harness's own tasks index ours too.

    Ours come after the built-in tasks and before the paths a user gives, so a user can override ours. A manager that
    was asked for no defaults gets none.

    Raises:
        RuntimeError: `TaskManager` no longer takes the arguments this relies on.
        FileNotFoundError: the task folder is missing from this installation.
    """
    from lm_eval.tasks.manager import TaskManager

    print_user_errors_plainly()
    stock = TaskManager.__init__
    if hasattr(stock, _ADDING):
        return
    signature = inspect.signature(stock)
    if not {"include_path", "include_defaults"} <= signature.parameters.keys():
        raise RuntimeError(f"TaskManager{signature} takes no include_path or no include_defaults")
    folder = tasks_dir()

    @functools.wraps(stock)
    def __init__(self, *args, **kwargs):
        try:
            call = signature.bind(self, *args, **kwargs)
        except TypeError:
            return stock(self, *args, **kwargs)  # a wrong call: the harness words its own error
        call.apply_defaults()
        given = call.arguments["include_path"]
        if not call.arguments["include_defaults"]:
            return stock(*call.args, **call.kwargs)
        paths = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
        if not any(Path(path).resolve() == folder for path in paths):
            paths.insert(0, folder)
        call.arguments.update(include_path=paths, include_defaults=_default_tasks_wanted)
        stock(*call.args, **call.kwargs)
        self.include_path = given  # what the caller gave, as documented for this attribute

    setattr(__init__, _ADDING, "lm_eval_edit")
    TaskManager.__init__ = __init__
    _check_data_when_tasks_are_named(TaskManager)
    _build_our_data_without_advice()


def _build_our_data_without_advice() -> None:
    """Call the functions that make our tasks' data as the harness does, without its advice on how to write such tasks.

    It warns once for each task that a `custom_dataset` can be given arguments. Ours are given theirs, and say so in the
    documentation; other people's tasks are built by the harness's own method.
    """
    from lm_eval.api.task import ConfigurableTask

    stock = ConfigurableTask.download

    @functools.wraps(stock)
    def download(self, dataset_kwargs=None, **kwargs):
        make = getattr(self.config, "custom_dataset", None)
        if make is None or not str(getattr(make, "__module__", "")).startswith("lm_eval_edit."):
            return stock(self, dataset_kwargs, **kwargs)
        self.dataset = make(**(self.config.metadata or {}), **(self.config.dataset_kwargs or {}))
        return None

    ConfigurableTask.download = download


def _check_data_when_tasks_are_named(task_manager: type[TaskManager]) -> None:
    """Look for the files of `data_dir` and the facts to ask about as soon as the command line knows its tasks.

    The harness builds tasks only after the model is loaded, and edited: too late to learn that a file is missing. Its
    command line looks up one task after the other; what they lack is told together.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    stock, process = task_manager.match_tasks, EvaluatorConfig.process_tasks

    @functools.wraps(stock)
    def match_tasks(self, task_list):
        names = stock(self, task_list)
        together = _named.get()
        if together is None:
            _check_data(names, self)
        else:
            together += names
        return names

    @functools.wraps(process)
    def process_tasks(self, *args, **kwargs):
        names: list[str] = []
        mark = _named.set(names)
        try:
            with only_our_tasks() if _names_only_ours(self) else nullcontext():
                manager = process(self, *args, **kwargs)
        finally:
            _named.reset(mark)
        misplaced = _options_of_tasks(names, self.model, self.model_args)
        try:
            _check_data(names, manager)
        except UserError as error:
            error = _with_those_of_options(error, self.model, self.model_args)
            raise ConfigurationError([*misplaced, *problems_of(error)]) if misplaced else error from None
        if misplaced:
            raise ConfigurationError(misplaced)
        return manager

    task_manager.match_tasks = match_tasks
    EvaluatorConfig.process_tasks = process_tasks


def _names_only_ours(command: EvaluatorConfig) -> bool:
    """Whether the harness's command line asks for our model and for tasks that can only be ours.

    Then its index of 14,000 tasks is not needed. A program that calls the harness may do more with it afterwards, tasks
    of the user's own may build on built-in ones whatever they are called, and a name that nobody knows is left to the
    harness's own words.
    """
    if command.model != MODEL_TYPE or command.include_path or not _is_command_line_program():
        return False
    given = command.tasks
    words = [given] if isinstance(given, str) else given or []
    if not all(isinstance(word, str) for word in words):
        return False
    try:
        return all_ours([name for word in words for name in word.split(",")], our_names())
    except UserError:
        return False


def _check_data(names: list[str], manager: TaskManager) -> None:
    if any(name.startswith(PREFIX) for name in names):
        from lm_eval_edit.tasklib import before_loading

        before_loading.check_tasks(names, manager.metadata or {})


def _options_of_tasks(names: list[str], model: str, model_args: dict[str, Any] | None) -> list[str]:
    """What tasks of ours read and stands among the arguments of a model that gives transformers what it does not know.

    That is HFLM: transformers refuses it, after the model's files were read, and its error names no way.
    """
    if model == MODEL_TYPE or not model_args or not any(name.startswith(PREFIX) for name in names):
        return []
    from lm_eval_edit.settings import OF_TASKS

    found = [name for name in OF_TASKS if name in model_args]
    if not found or not _is_of_transformers(model):
        return []
    wanted = ",".join(f"{name}={model_args[name]}" for name in found)
    return [
        f"{', '.join(found)} in --model_args: the model type {model} has no such argument; "
        f"tasks are told by --metadata {wanted}"
    ]


def _is_of_transformers(model: str) -> bool:
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    return issubclass(get_model(model), HFLM)


def _with_those_of_options(error: UserError, model: str, model_args: dict[str, Any] | None) -> UserError:
    """An error of tasks, together with what is wrong with the model's own options, which would be told a run later."""
    if model != MODEL_TYPE:
        return error
    from lm_eval.api.registry import get_model

    found = get_model(MODEL_TYPE).option_problems(model_args or {})
    return ConfigurationError(dict.fromkeys([*problems_of(error), *found])) if found else error


@contextmanager
def only_names() -> Iterator[None]:
    """Within this block matching names looks for no data: what the tasks are asked about is not known to the index yet.

    Without a model and facts of its own a check would be of the demo's, which need not have what another run's have.
    """
    mark = _named.set([])
    try:
        yield
    finally:
        _named.reset(mark)


@contextmanager
def only_our_tasks() -> Iterator[None]:
    """Within this block a `TaskManager` indexes our tasks in place of the harness's 14,000, which takes seconds."""
    global _default_tasks_wanted
    before, _default_tasks_wanted = _default_tasks_wanted, False
    try:
        yield
    finally:
        _default_tasks_wanted = before


def print_user_errors_plainly() -> None:
    """In the command-line programs, print the text of a `UserError` without a traceback; the exit status stays 1.

    A mistyped option is not a defect of the program, and its message says all there is to say; nor is Ctrl-C while our
    model works, which ends with status 130. Every other exception, and every program that merely uses the harness as a
    library, keeps its traceback.
    """
    if hasattr(sys.excepthook, PLAIN) or not _is_command_line_program():
        return
    previous = sys.excepthook

    def excepthook(kind, error, traceback):
        stopped = issubclass(kind, (KeyboardInterrupt, Terminated)) or asked()
        if stopped and kept() is not None:  # our model is at work
            raise SystemExit(tell(error))
        if issubclass(kind, UserError):
            print(printable(str(error)), file=sys.stderr)
        else:
            previous(kind, error, traceback)

    setattr(excepthook, PLAIN, True)
    sys.excepthook = excepthook


def _is_command_line_program() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:  # python -m ...
        return spec.name in MODULES
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    return program.removesuffix(".exe").removesuffix("-script.py") in PROGRAMS
