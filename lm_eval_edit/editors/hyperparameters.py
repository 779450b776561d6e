"""An editor's hyper-parameters: preset, then file, then command line; every value checked, every problem told at once.

Names are EasyEdit's, and its hparams files for the same method are read as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from transformers import PretrainedConfig

from lm_eval_edit._support.files import read_yaml
from lm_eval_edit.editors.base import Editor, option_names
from lm_eval_edit.errors import UserError, nearest

#: Fields of EasyEdit's hparams files that say what is found here by structure, or given elsewhere. `v_loss_layer` names
#: the last layer in every published file, which is where the loss is taken: another one shows a file for another model.
# fmt: off
EASYEDIT_ONLY = frozenset((
    "alg", "alg_name", "model_name", "tokenizer_name", "tokenizer_class", "model_class", "device", "device_map",
    "stats_dir", "mom2_dataset", "mom2_n_samples", "mom2_dtype", "rewrite_module_tmp", "layer_module_tmp",
    "mlp_module_tmp", "attn_module_tmp", "ln_f_module", "lm_head_module", "fp16", "model_parallel", "max_length",
    "max_new_tokens", "layer_selection", "objective_optimization", "batch_size", "v_loss_layer", "results_dir",
))
# fmt: on


@dataclass(frozen=True)
class Preset:
    """Published hyper-parameters of one method for one kind of model.

    Attributes:
        name: The model as the field calls it.
        match: Configuration attributes and the values they must have.
        source: Where the figures were published.
        options: The hyper-parameters.
        given: Options that a user must have given, and how, for the preset to be theirs: figures of a variant.
    """

    name: str
    match: dict[str, Any]
    source: str
    options: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)

    def fits(self, config: PretrainedConfig, given: Mapping[str, Any] = MappingProxyType({})) -> bool:
        """Whether a model of this configuration, edited with these options, is the preset's."""
        return all(getattr(config, name, None) == value for name, value in self.match.items()) and all(
            str(given.get(name)).lower() == str(value).lower() for name, value in self.given.items()
        )


def presets(editor: str) -> list[Preset]:
    """The presets of an editor, the first that fits being used; empty when it has none."""
    file = resources.files("lm_eval_edit.editors") / "presets" / f"{editor}.yaml"
    return [Preset(**entry) for entry in yaml.safe_load(file.read_text())] if file.is_file() else []


@dataclass(frozen=True)
class Hyperparameters:
    """An editor ready to run.

    Attributes:
        editor: With its options.
        preset: Name of the preset the options began with; None when the model has none.
        notices: What the user should know (figures that are not published for the model).
    """

    editor: Editor
    preset: str | None
    notices: tuple[str, ...] = ()


def read_options_file(path: str | Path) -> dict[str, Any]:
    """A YAML (or JSON) file of hyper-parameters.

    Raises:
        UserError: missing file, not YAML (line named), or not a mapping.
    """
    path = Path(path).expanduser()
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: want a mapping of hyper-parameters (v_lr: 0.5, ...); got {type(content).__name__}")
    return dict(content)


def resolve(
    editor_class: type[Editor],
    config: PretrainedConfig,
    given: Mapping[str, Any],
    layers: tuple[int, ...] | None = None,
) -> tuple[Hyperparameters | None, list[str]]:
    """Merge preset, given options and layers into an editor.

    An editor that wraps another one is given the hyper-parameters of both; preset and layers are the wrapped one's.

    Args:
        editor_class: The method.
        config: The model's configuration; presets are chosen by it.
        given: Options by EasyEdit's names (from a file, or in Python).
        layers: The layers to edit; wins over `given`.

    Returns:
        (the editor, problems as sentences); the editor is None when there are problems.
    """
    config = config.get_text_config(decoder=True)
    try:
        inner_class = editor_class.wraps(given)
        accepted = option_names(editor_class, given)
    except UserError as error:
        return None, [str(error)]
    passed_over = EASYEDIT_ONLY | editor_class.unused_fields | (inner_class.unused_fields if inner_class else set())
    unknown = [name for name in given if name not in accepted and name not in passed_over]
    if editor_class.other_options is not None:  # they are another package's business
        unknown = []
    problems = [
        f"{name}: no hyper-parameter of {editor_class.name}.{nearest(name, accepted)} It has {', '.join(accepted)}"
        for name in unknown
    ]
    names = [f.name for f in fields(editor_class.Options)]
    own_name = _plain(editor_class.easyedit_name or editor_class.name)
    its_own = _plain(str(given.get("alg_name", own_name))) == own_name
    inner: Hyperparameters | None = None
    if inner_class is not None:
        left_out = {*names, *unknown, *(["alg_name"] if its_own else [])}
        inner, found = resolve(inner_class, config, {n: v for n, v in given.items() if n not in left_out}, layers)
        problems += found
    elif not its_own:
        problems.append(
            f"the hyper-parameters are for {given['alg_name']}, the editor is {editor_class.name}: give its own file"
        )
    notices = list(inner.notices) if inner else []
    preset = next((p for p in presets(editor_class.name) if p.fits(config, given)), None)
    merged: dict[str, Any] = dict(preset.options) if preset else {}
    merged |= {name: value for name, value in given.items() if name in names}
    if editor_class.other_options is not None:
        others = {name: value for name, value in given.items() if name not in names}
        merged[editor_class.other_options] = others if layers is None else others | {"layers": list(layers)}
        layers = None
    read_here = inner is None and editor_class.other_options is None
    if read_here and "v_loss_layer" not in names:
        problems += _of_another_size(given, config.num_hidden_layers - 1)
    if layers is not None and "layers" in names:
        merged["layers"] = layers
    elif layers is not None and inner is None:
        problems.append(f"edit_layers: {editor_class.name} is not told its layers; leave edit_layers out")
    instead = editor_class.instead_of_layers
    if instead:
        _one_of_two(instead, merged, given, layers)
    by_depth = "layers" in names and not merged.get("layers") and not (instead and merged.get(instead))
    if by_depth:
        merged["layers"] = editor_class.default_layers(config.num_hidden_layers)
    values, found = _typed(editor_class, merged)
    problems += found
    if problems:
        return None, problems
    try:
        options = editor_class.Options(**values)
        if preset is None and (told := _fallen_back(editor_class, options, set(merged), by_depth, config)):
            notices.append(told)
        make: Callable[..., Editor] = editor_class  # one that wraps another takes that as well
        editor = make(options) if inner is None else make(options, inner.editor)
    except ValueError as error:
        return None, [str(error)]
    return Hyperparameters(editor, preset.name if preset else inner.preset if inner else None, tuple(notices)), []


def _one_of_two(instead: str, merged: dict[str, Any], given: Mapping[str, Any], layers: tuple[int, ...] | None) -> None:
    """Leave in `merged` either layers or what a method takes in their place: what is asked for, not a preset's."""
    if merged.get("layers") and instead not in given:  # a preset's names give way to layers that are asked for
        merged.pop(instead, None)
    elif merged.get(instead) and layers is None and not given.get("layers"):
        merged.pop("layers", None)


def _of_another_size(given: Mapping[str, Any], last: int) -> list[str]:
    """The problem of hyper-parameters that name another last layer than the model's, as a list of sentences."""
    if str(given.get("v_loss_layer", last)) == str(last):
        return []
    return [
        f"v_loss_layer={given['v_loss_layer']}: these hyper-parameters are for a model of another size, this one's "
        f"last layer is {last}; give the file of this model, or leave v_loss_layer out to use them all the same"
    ]


def _typed(editor_class: type[Editor], merged: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of an editor's options as their types, and the problems of those that are of another."""
    values, problems = {}, []
    for f in fields(editor_class.Options):
        if f.name in merged:
            try:
                values[f.name] = _value(merged[f.name], f)
            except ValueError as error:
                problems.append(f"{f.name}={merged[f.name]!r}: {error}")
    return values, problems


def _fallen_back(
    editor: type[Editor], options: Any, given: set[str], by_depth: bool, config: PretrainedConfig
) -> str | None:
    """What a user should know of figures that nobody has published for this model: which, and where they come from."""
    depth = getattr(options, "layers", ()) if by_depth else ()
    if len(depth) == config.num_hidden_layers:  # all of them is no choice
        depth = ()
    from_model = [f.name for f in fields(options) if f.metadata.get("from_model") and getattr(options, f.name) is None]
    defaults = [
        f"{f.name} {getattr(options, f.name):g}"
        for f in fields(options)
        if f.name not in given and f.metadata.get("tuned", True) and type(f.default) in (int, float)
    ]
    parts = []
    if depth:
        parts.append(f"layer(s) {', '.join(map(str, depth))} chosen by relative depth")
    if from_model:
        parts.append(f"{', '.join(from_model)} from the model itself")
    if defaults:
        parts.append(f"by default {', '.join(defaults)}")
    if not parts:
        return None
    return (
        f"no published {editor.name} hyper-parameters for this model ({config.model_type}, {config.num_hidden_layers} "
        f"layers, width {config.hidden_size}): {'; '.join(parts)}. edit_layers=, NAME=VALUE or edit_config= says "
        f"otherwise, docs/defaults.md what to expect"
    )


def from_the_model(editor: Editor) -> dict[str, str]:
    """{option: how} of an editor's options whose values are found in the model when editing begins."""
    inner = getattr(editor, "inner", None)
    found = from_the_model(inner) if isinstance(inner, Editor) else {}
    for f in fields(editor.options):
        if f.metadata.get("from_model") and getattr(editor.options, f.name) is None:
            found[f.name] = f.metadata["from_model"]
    return found


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _value(value: Any, f: Field[Any]) -> Any:
    """`value` as the type of an option. `auto` or none leaves an option to the model where it can be."""
    if (least := f.metadata.get("least")) is not None:
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        number = coerce(value, least)
        if number < least:
            raise ValueError(f"want a whole number of at least {least}, or none")
        return number
    if not f.metadata.get("from_model"):
        found = coerce(value, f.default)
        sign = f.metadata.get("sign", "")
        if (sign == "positive" and not found > 0) or (sign == "not negative" and not found >= 0):
            raise ValueError(f"want a {'positive number' if sign == 'positive' else 'number that is not negative'}")
        return found
    if value is None or (isinstance(value, str) and value.strip().lower() in ("auto", "none")):
        return None
    try:
        return coerce(value, f.metadata["like"])
    except ValueError as error:
        raise ValueError(f"{error}, or auto: {f.metadata['from_model']}") from None


def coerce(value: Any, like: Any) -> Any:
    """`value` as the type of the default `like`. PyYAML reads 5e-1 as text, so numeric text counts as a number.

    Raises:
        ValueError: with what was wanted.
    """
    if isinstance(like, bool):
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise ValueError("want true or false")
        return value
    if isinstance(like, (int, float)):
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if number is None or (isinstance(like, int) and not number.is_integer()):
            raise ValueError("want a whole number" if isinstance(like, int) else "want a number")
        if not math.isfinite(number):
            raise ValueError("want a finite number")
        return int(number) if isinstance(like, int) else number
    if isinstance(like, tuple):
        if not isinstance(value, (list, tuple)):
            raise ValueError("want a list")
        return tuple(coerce(item, ()) if isinstance(item, (list, tuple)) else item for item in value)
    if like is None:
        return value
    if not isinstance(value, str):
        raise ValueError("want text")
    return value
