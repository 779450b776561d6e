"""`lm-eval-edit ls editors`: the methods, what each can do and needs, and the hyper-parameters of one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

from lm_eval_edit.commands._layout import columns, paragraph
from lm_eval_edit.editors.base import BUILT_IN, Editor, editor_names, find_editor, option_names
from lm_eval_edit.editors.hyperparameters import Preset, presets
from lm_eval_edit.errors import UserError


def list_editors() -> list[str]:
    """A paragraph about every editor `editor=` knows."""
    lines = ["none", "    leaves the model as it is: the figures of the unedited model"]
    for name in editor_names():
        if name == "none":
            continue
        lines += ["", name if name in BUILT_IN else f"{name}  (of an installed package)"]
        try:
            lines += columns([(find_editor(name).summary,)], indent=4) + columns(_about(find_editor(name)), indent=4)
        except UserError as error:  # another package's editor that does not import must not hide the others
            lines += columns([(str(error),)], indent=4)
    return [*lines, "", "Hyper-parameters of one of them: lm-eval-edit ls editors NAME"]


def describe_editor(name: str) -> list[str]:
    """All there is to know about one editor: its hyper-parameters and presets too.

    Raises:
        UserError: no editor of that name.
    """
    if name == "none":
        return ["none leaves the model as it is and has no hyper-parameters."]
    editor = find_editor(name)
    about = [row for row in _about(editor) if row[0] != "presets"]
    lines = [*paragraph(f"{editor.name}: {editor.summary}"), "", *columns(about, indent=2), ""]
    lines += paragraph(
        "Hyper-parameters, given directly in --model_args (name=value) or in edit_config=FILE under the same names:"
    )
    lines += ["", *columns(_hyperparameters(editor), indent=2), ""]
    if (inner := editor.wraps({})) is not None:
        lines += [*paragraph(f"And those of the method it works on: lm-eval-edit ls editors {inner.name}"), ""]
    found = presets(editor.name)
    if editor.wraps({}) is not None:
        return lines + paragraph("The hyper-parameters of the editor it changes are given beside these.")
    if not found:
        return lines + paragraph("No presets: the defaults above hold for every model; layers by relative depth.")
    lines += paragraph("Presets, chosen by the model's configuration; other models have the defaults above:")
    return [*lines, "", *columns(map(_preset, found), indent=2)]


def _about(editor: type[Editor]) -> list[tuple[str, str]]:
    names = ", ".join(preset.name for preset in presets(editor.name))
    one, many = (
        "instance-sequential: one fact after another",
        "batch-single, batch-sequential: edit_batch_size facts at once",
    )
    if editor.wraps({}) is not None:
        of_inner = "those of the editor it changes"
        return [("source", editor.source), ("settings", of_inner), ("needs", editor.needs), ("presets", of_inner)]
    return [
        ("source", editor.source),
        ("settings", f"{one}\n{many}" if editor.batches else one),
        ("needs", editor.needs or _needs(editor)),
        ("presets", names or "none: the same defaults for every model"),
    ]


def _needs(editor: type[Editor]) -> str:
    inner = editor.wraps({})
    if inner is not None:
        return f"what the method it works on needs ({inner.name} by default: {inner.needs or _needs(inner)})"
    with_layers = {"layers": (0,)} if "layers" in option_names(editor) else {}
    try:
        moments = editor(editor.Options(**with_layers)).needs_second_moments()
    except ValueError as error:  # options without which it does not start are what it needs
        return str(error)
    return "second moments of its layers" if moments else "nothing but the model"


def _hyperparameters(editor: type[Editor]) -> Iterable[tuple[str, str, str]]:
    for f in fields(editor.Options):
        value = f.default if f.default_factory is MISSING else f.default_factory()
        by_model = (f.name == "layers" and not value) or (value is None and f.metadata.get("from_model"))
        default = "by model" if by_model else shown(value)
        # A default that would widen its column for all the others stands below the description.
        about = f.metadata.get("help", "")
        if f.metadata.get("from_model"):
            about += f"; by default {f.metadata['from_model']}"
        yield (f.name, default, about) if len(default) <= 12 else (f.name, "", f"{about}\ndefault: {default}")


def shown(value: Any) -> str:
    """A hyper-parameter's value as YAML or the command line would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(shown, value)) + "]"
    return repr(value) if value == "" else f"{value}"


def _preset(preset: Preset) -> tuple[str, str]:
    match = ", ".join(f"{name} {shown(value)}" for name, value in preset.match.items())
    options = ", ".join(f"{name} {shown(value)}" for name, value in preset.options.items())
    if preset.given:
        match += ", where given " + ", ".join(f"{name}={shown(value)}" for name, value in preset.given.items())
    return preset.name, f"for {match}\n{options}\nsource: {preset.source}"
