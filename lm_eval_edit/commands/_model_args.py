"""`--model_args` in our own sub-commands: the same text, parsed the same way, as in the harness's command."""

from __future__ import annotations

import argparse
from typing import Any

from lm_eval_edit.errors import UserError


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """Declare `--model_args`."""
    parser.add_argument(
        "--model_args",
        "-a",
        nargs="+",
        default=[],
        metavar="name=value",
        help="as in `lm_eval --model edited_hf --model_args ...`; `lm-eval-edit ls options` describes them",
    )


def parse_model_args(words: list[str]) -> dict[str, Any]:
    """The options as the harness's command would hand them to the model type.

    Raises:
        UserError: a word that is not name=value.
    """
    from lm_eval_edit.harness.command import parse_assignments

    options: dict[str, Any] = {}
    for word in words:
        try:
            options |= parse_assignments(word)
        except ValueError as error:
            raise UserError(f"--model_args {word}: {error}; want name=value,name=value,...") from None
    return options
