"""Errors a user can act on: each message says what was got, what is accepted and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake in what the user gave. Command-line programs print its text alone, without a traceback."""


class ConfigurationError(UserError):
    """Every problem found in a configuration, collected so that one run shows them all.

    Args:
        problems: One sentence for each problem, in the order they were found.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(f"lm-eval-edit: {head} in the configuration\n" + "\n".join(f"  - {p}" for p in self.problems))


def in_one_error(problems: Sequence[str]) -> UserError:
    """An error of its own for a single problem, a `ConfigurationError` for several."""
    return UserError(problems[0]) if len(problems) == 1 else ConfigurationError(problems)


def problems_of(error: UserError) -> list[str]:
    """The problems an error tells, as sentences: those of a `ConfigurationError`, else its text."""
    return error.problems if isinstance(error, ConfigurationError) else [str(error)]


class CannotWriteError(UserError, OSError):
    """A file or folder for results cannot be written: nothing computed from here on could be kept."""


def in_one_line(error: BaseException) -> str:
    """An exception as its class and the first line of its message."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


def nearest(name: str, accepted: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the accepted name closest to `name`, else the empty string."""
    found = difflib.get_close_matches(name, list(accepted), n=1, cutoff=0.6)
    return f" Did you mean '{found[0]}'?" if found else ""
