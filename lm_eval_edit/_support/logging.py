"""What this package logs: no terminal acts upon it, and lines that every user is to see are seen."""

from __future__ import annotations

import logging
import sys

from lm_eval_edit._support.terminal import printable


class _Printable(logging.Filter):
    """Lets every record through, with its message made safe to print (`printable`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


_FILTER = _Printable()


def say(logger: logging.Logger, text: str) -> None:
    """Log a line that every user is to see, though nothing is wrong.

    The harness shows its own INFO and nobody else's, so in the command-line programs the line is printed as well.
    """
    logger.info("%s", text)
    # A process that leaves speaking to the first one logs errors only.
    if hasattr(sys.excepthook, "prints_user_errors") and logger.isEnabledFor(logging.WARNING):
        print(printable(text), file=sys.stderr)


def log_safely() -> None:
    """Make what `lm_eval_edit` logs safe to print; may be called again."""
    logging.getLogger("lm_eval_edit").addFilter(_FILTER)  # adds the same one once
