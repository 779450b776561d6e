"""The harness's own command line, from inside a program: its arguments, its options, its `name=value`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lm_eval._cli import HarnessCLI
from lm_eval._cli.utils import key_val_to_dict
from lm_eval.config.evaluate_config import EvaluatorConfig


class HarnessCommand:
    """`lm_eval`, which reads its arguments in `sys.argv`."""

    def __init__(self) -> None:
        self._cli = HarnessCLI()

    def parse(self) -> argparse.Namespace:
        """The arguments.

        Raises:
            SystemExit: `--help`, or 2 where they are wrong, which the harness has told by then.
        """
        return self._cli.parse_args()

    def execute(self, arguments: argparse.Namespace) -> None:
        """Do what they ask for."""
        self._cli.execute(arguments)

    def options(self, command: str) -> list[str]:
        """The long options of a sub-command; none where they cannot be found out."""
        parser = getattr(getattr(self._cli, "_subparsers", None), "choices", {}).get(command)
        return [text for text in getattr(parser, "_option_string_actions", {}) if text.startswith("--")]


def given(arguments: argparse.Namespace, option: str) -> list[str]:
    """The names in `option`: those on the command line or, without any, those in the file that `--config` names."""
    value: Any = getattr(arguments, option)
    if not value and arguments.config:
        value = EvaluatorConfig.load_yaml_config(arguments.config).get(option)
    values: Sequence[Any] = [value] if isinstance(value, str) else value or ()
    return [name for item in values for name in str(item).split(",")]


def parse_assignments(word: str) -> dict[str, Any]:
    """`name=value,name=value` as `--model_args` reads it.

    Raises:
        ValueError: a part without `=`.
    """
    return key_val_to_dict(word)
