"""The editor that a run's options choose, told without its weights: for the plan of edits and for the tasks that ask.

An editor may pass over facts that others edit, so whoever wants to know which facts a run edits must know its editor.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lm_eval_edit import demo
from lm_eval_edit.editors.base import BUILT_IN, Editor, find_editor, option_names
from lm_eval_edit.editors.hyperparameters import read_options_file, resolve
from lm_eval_edit.editors.named_by_data import names_out_of_data
from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.models import gguf
from lm_eval_edit.settings import EditSettings

#: What HFLM takes by name.
HFLM_OPTIONS = tuple(inspect.signature(HFLM).parameters)


def chosen_editor(
    pretrained: str | PreTrainedModel, settings: EditSettings, others: Mapping[str, Any]
) -> Editor | None:
    """The editor of a run, without the rest of its plan; None where its options have problems, which the plan tells.

    Args:
        pretrained, settings, others: As for `plan.make_plan`; `others` may hold more than options.
    """
    config, _ = model_config(pretrained, others)
    given, _ = given_options(settings)
    with no_code_of_files(settings, others):
        _, direct = split_options(settings.editor, given, others)
        if settings.editor == "none" or config is None:
            return None
        try:
            hyperparameters, _ = resolve(
                find_editor(settings.editor), config, {**given, **direct}, settings.edit_layers
            )
        except UserError:
            return None
    return hyperparameters.editor if hyperparameters else None


def model_config(
    pretrained: str | PreTrainedModel, others: Mapping[str, Any]
) -> tuple[PretrainedConfig | None, list[str]]:
    """A model's configuration without its weights; None, with the problem as a sentence, where there is none."""
    if not isinstance(pretrained, str):
        return pretrained.config, []
    try:
        source = demo.loadable(pretrained)
    except UserError as error:
        return None, [str(error)]
    try:
        return AutoConfig.from_pretrained(
            source,
            revision=str(others.get("revision") or "main"),
            subfolder=others.get("subfolder") or "",
            trust_remote_code=bool(others.get("trust_remote_code")),
            **({"gguf_file": str(others["gguf_file"])} if others.get("gguf_file") else {}),
        ), []
    except Exception as error:
        if not others.get("gguf_file") and not isinstance(error, (OSError, ValueError)):
            raise  # a damaged GGUF file alone may be any error
        if others.get("gguf_file"):
            told = bool(gguf.problems(pretrained, str(others["gguf_file"])))  # by who asks for the file
            why = f"gguf_file={others['gguf_file']}: no model configuration can be read of it ({in_one_line(error)})"
            return None, [] if told else [f"{why}. Give a whole GGUF file of a kind that transformers knows"]
        return None, [
            f"pretrained={pretrained}: no model configuration found ({in_one_line(error)}). Give a "
            f"folder with config.json, or a hub id (that needs network), or pretrained=demo or smollm2"
            f"{gguf.instead(pretrained)}"
        ]


@contextmanager
def no_code_of_files(settings: EditSettings, others: Mapping[str, Any]) -> Iterator[None]:
    """A context in which the file of `edit_config` chooses no code: what is imported is named beside it.

    Files of hyper-parameters are passed around. One made in Python is the program's own.
    """
    if not isinstance(settings.edit_config, str):
        yield
        return
    words = (settings.editor, settings.edit_facts_for, *others.values())
    with names_out_of_data([word for word in words if isinstance(word, str)]):
        yield


def given_options(settings: EditSettings) -> tuple[dict[str, Any], list[str]]:
    """The hyper-parameters of `edit_config`, and the problem of reading them as a list of sentences."""
    given = settings.edit_config or {}
    try:
        return dict(given) if isinstance(given, Mapping) else read_options_file(given), []
    except UserError as error:
        return {}, [str(error)]


def split_options(
    editor: str, given: Mapping[str, Any], others: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for HFLM, and those that are the editor's own hyper-parameters (`v_lr=0.1` beside `editor=rome`).

    Those of an editor that wraps another one depend on which one, which `edit_config` may say too. Where there is no
    such editor, that is told with the other problems of the plan, and any hyper-parameter may be meant.
    """
    own: list[str] = []
    try:
        if editor != "none":
            found = find_editor(editor)
            own = [f.name for f in fields(found.Options)]
            own = option_names(found, {**given, **others})
    except UserError:
        own += hyperparameters_of_all()
    names = set(own)
    names -= set(HFLM_OPTIONS)
    return {n: v for n, v in others.items() if n not in names}, {n: v for n, v in others.items() if n in names}


def hyperparameters_of_all() -> dict[str, list[str]]:
    """{hyper-parameter: the built-in methods that have it}."""
    owners: dict[str, list[str]] = {}
    for name in BUILT_IN:
        for f in fields(find_editor(name).Options):
            owners.setdefault(f.name, []).append(name)
    return owners
