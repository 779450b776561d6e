"""The options of `--model edited_hf`: named, typed, described, checked together before anything is loaded.

Both of lm-eval's argument parsers are served: the command line turns `n_edits=-1` into -1.0 and `none` into the text
'none'; the Python string form turns `none` into None and breaks lists at their commas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lm_eval_edit.errors import nearest

AFTER_ALL, AFTER_EACH = "after_all", "after_each"
ALL = "all"  # items


LARGEST = 2**63  # what a generator of random numbers takes for a seed, and a tensor for a size


def _whole(least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = value
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
            number = int(value)
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or number != number or number < least or (number < LARGEST and number != int(number)):
            raise ValueError(f"want a whole number of at least {least}")
        if number >= LARGEST:
            raise ValueError("want a whole number below 2**63")
        return int(number)

    return parse


def _seed(value: Any) -> int | None:
    return None if _is_none(value) else _whole(0)(value)


def _share(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError("want a number of at least 0")
    return number


def _part(value: Any) -> float | None:
    if _is_none(value):
        return None
    try:
        if (number := _share(value)) <= 1:
            return number
    except ValueError:
        pass
    raise ValueError("want a share between 0 and 1")


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if _is_none(value) or str(value).lower() in ("false", "true"):
        return str(value).lower() == "true"
    raise ValueError("want true or false")


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() == "none")


def _text(value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("want text")
    return str(value)


def _editor(value: Any) -> str:
    return "none" if _is_none(value) else _text(value)


def _path(value: Any) -> str | None:
    return None if _is_none(value) else _text(value)


def _path_or_mapping(value: Any) -> str | dict[str, Any] | None:
    return dict(value) if isinstance(value, Mapping) else _path(value)


def parse_layers(value: Any) -> tuple[int, ...] | None:
    """Layers as a user writes them: 17, "17", "3-8" (both ends included), "3:5:7", [3, 5, 7], or none."""
    if _is_none(value):
        return None
    wanted = "want a layer (17), a range (3-8), layers (3:5:7) or a list"
    if isinstance(value, str):
        if span := re.fullmatch(r"(\d+)-(\d+)", value.strip()):
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise ValueError(f"the range runs backwards; {wanted}")
            return tuple(range(first, last + 1))
        if not re.fullmatch(r"\d+(:\d+)*", value.strip()):
            raise ValueError(wanted)
        value = [int(part) for part in value.split(":")]
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    try:
        layers = tuple(_whole(0)(item) for item in items)
    except ValueError:
        raise ValueError(wanted) from None
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"each layer once, and at least one; {wanted}")
    return layers


def parse_items(value: Any) -> int | str | None:
    """How many items of a published list: a number, `all`, or none for those that are published."""
    if _is_none(value):
        return None
    if isinstance(value, str) and value.strip().lower() == ALL:
        return ALL
    try:
        return _whole(1)(value)
    except ValueError as error:
        raise ValueError(f"{error}, {ALL}, or none for the published items") from None


def _one_of(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            hint = nearest(str(value), words)
            raise ValueError(f"want {' or '.join(words)}{hint and '.' + hint}")
        return value

    return parse


def _setting(default: Any, parse: Callable[[Any], Any], accepts: str, help: str) -> Any:
    return field(default=default, metadata={"parse": parse, "accepts": accepts, "help": help})


@dataclass(frozen=True)
class EditSettings:
    """What `edited_hf` is asked to do, apart from the options of HFLM itself."""

    editor: str = _setting(
        "none", _editor, "a method's name, module:Class, or none", "the editing method; none leaves the model as it is"
    )
    n_edits: int = _setting(1, _whole(0), "a whole number >= 0", "how many facts are edited in all")
    edit_batch_size: int = _setting(
        1, _whole(1), "a whole number >= 1", "how many facts one operation edits together (methods that batch)"
    )
    edit_dataset: str | None = _setting(
        None,
        _path,
        "demo, known_facts, zsre, counterfact, or a JSON/JSONL file",
        "the facts; default: demo for the demo model, known_facts for smollm2, zsre for any other",
    )
    edit_seed: int | None = _setting(
        0, _seed, "a whole number >= 0, or none", "seeds the order of the facts; none keeps the order of the file"
    )
    edit_offset: int = _setting(0, _whole(0), "a whole number >= 0", "facts of that order passed over first")
    edit_layers: tuple[int, ...] | None = _setting(
        None, parse_layers, "17, 3-8 or 3:5:7", "the layers to edit; default: the preset of the model"
    )
    edit_config: str | dict[str, Any] | None = _setting(
        None,
        _path_or_mapping,
        "a YAML file (EasyEdit's hparams files work), or a mapping",
        "hyper-parameters of the method; default: the preset of the model",
    )
    edit_ledger: str | None = _setting(
        None,
        _path,
        "a folder",
        "where the edits are stored; a folder that holds the same run is replayed and continued",
    )
    edit_second_moments: str | None = _setting(
        None,
        _path,
        "a safetensors file, a published ROME/MEMIT .npz file, or a folder of either",
        "E[k k^T] for methods that need it; default: editing/second_moments.safetensors in the model's folder",
    )
    edit_corpus: str | None = _setting(
        None,
        _path,
        "wikitext, wikipedia, or a text or JSONL file",
        "text to compute E[k k^T] from, once, where a method needs it and there is none",
    )
    edit_corpus_tokens: int = _setting(
        200_000, _whole(1), "a whole number >= 1", "how many tokens of edit_corpus; ten or more per dimension are good"
    )
    edit_mom2_regularisation: float = _setting(
        0.0,
        _share,
        "a number >= 0",
        "added to E[k k^T]'s diagonal, as a share of its mean eigenvalue: for moments from too few tokens",
    )
    edit_chat_template: bool = _setting(
        False,
        _truth,
        "true or false",
        "edit the facts inside the model's chat template, where a chat user meets them (docs/chat.md)",
    )
    edit_when: str = _setting(
        AFTER_ALL,
        _one_of(AFTER_ALL, AFTER_EACH),
        f"{AFTER_ALL} or {AFTER_EACH}",
        "when the tasks of edithurt_editing ask about a fact: after the whole schedule, or right after its own edit",
    )
    edit_facts_for: str | None = _setting(
        None,
        _path,
        "a method's name",
        "with editor=none: ask about the facts that this method would edit, for the figures before its edits (kn "
        "passes over facts whose present answer is not known)",
    )
    snippets: str | None = _setting(
        None,
        _path,
        "a JSON file",
        "reference texts for edithurt_counterfact_generation (attribute_snippets.json); with other model types: "
        "--metadata snippets=...",
    )
    min_success: float | None = _setting(
        None,
        _part,
        "a share between 0 and 1, or none",
        "an error, for CI, unless this share of the edits is answered right both after their own edit and at the end",
    )
    data_dir: str | None = _setting(
        None,
        _path,
        "a folder, or demo",
        "task data (and zsre / counterfact) instead of the hub; with other model types: --metadata data_dir=...",
    )
    items: int | str | None = _setting(
        None,
        parse_items,
        "a whole number, all, or none",
        "edithurt_glue: so many items of each list; none: the published hundred; with other model types: --metadata",
    )


NAMES = tuple(f.name for f in fields(EditSettings))
OF_TASKS = ("data_dir", "items")  # of these, what is for every task and not about edits alone


def parse_settings(given: Mapping[str, Any]) -> tuple[EditSettings, list[str]]:
    """Check the given options of ours.

    Returns:
        (the settings, problems as sentences); a setting with a problem has its default.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for f in fields(EditSettings):
        if f.name in given:
            try:
                values[f.name] = f.metadata["parse"](given[f.name])
            except ValueError as error:
                shown = given[f.name]
                shown = int(shown) if isinstance(shown, float) and shown.is_integer() else shown
                problems.append(f"{f.name}={shown}: {error}")
    return EditSettings(**values), problems


def unknown_option_problems(names: list[str], accepted: list[str]) -> list[str]:
    """A sentence for each option that neither we nor the harness nor transformers knows."""
    problems = []
    for name in names:
        bare = name.strip()
        if bare != name and bare[:1].isalpha():
            problems.append(
                f"{name!r}: there is a space after the comma before {bare}; write name=value,name=value without "
                f"spaces.{'' if bare in (*NAMES, *accepted) else nearest(bare, [*NAMES, *accepted])}"
            )
        elif not name or not name[:1].isalpha():
            problems.append(
                f"{name!r}: not an option; a list broken at its commas? Write layers as edit_layers=3:5:7 or 3-8"
            )
        else:
            problems.append(
                f"{name}: no such option of edited_hf.{nearest(name, [*NAMES, *accepted])} "
                f"Ours are {', '.join(NAMES)}; `lm-eval-edit ls options` describes them"
            )
    return problems
