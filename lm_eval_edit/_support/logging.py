"""What this package logs holds texts of other people's files: no terminal acts upon them."""

from __future__ import annotations

import logging

from lm_eval_edit._support.terminal import printable


class _Printable(logging.Filter):
    """Lets every record through, with its message made safe to print (`printable`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


_FILTER = _Printable()


def log_safely() -> None:
    """Make what `lm_eval_edit` logs safe to print; may be called again."""
    logging.getLogger("lm_eval_edit").addFilter(_FILTER)  # adds the same one once
