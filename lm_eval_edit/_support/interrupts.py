"""What is said when a user stops a program (Ctrl-C, or SIGTERM): what is kept, and how to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

_kept: list[str] = []
_asked: list[int] = []  # the signals of the user so far

PLAIN = "prints_user_errors"  # a mark on `sys.excepthook` in the command-line programs


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


def keep(text: str | None) -> None:
    """Say what an interruption from now on leaves; None for nothing in particular.

    Args:
        text: A clause: what is kept, and that the same command goes on from there.
    """
    _kept[:] = [] if text is None else [text]
    if text is None:
        _asked.clear()
    at_work()
    if hasattr(sys.excepthook, PLAIN):  # one of the command-line programs, not a library's user
        raise_on_sigterm()


def kept() -> str | None:
    """What was said last."""
    return _kept[0] if _kept else None


def asked() -> bool:
    """Whether the user has stopped this program, whatever became of the exception.

    A library that is interrupted while it is imported raises another one in its place (transformers: "Could not import
    module"), which says nothing to a user.
    """
    return bool(_asked)


def at_work(start: bool = False) -> None:
    """Let Ctrl-C raise KeyboardInterrupt from now on, where it has ended the process at once until now.

    Args:
        start: This is one of our own programs, even if its start-up files are not there.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    found = signal.getsignal(signal.SIGINT)
    if hasattr(found, "before_work") or (start and found is signal.default_int_handler):
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    _asked.append(number)
    raise KeyboardInterrupt


def raise_on_sigterm() -> None:
    """Let SIGTERM end this process like Ctrl-C does, unless the program around has plans of its own for it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    process = os.getpid()

    def stop(number: int, frame: object) -> NoReturn:
        if os.getpid() != process:  # a process forked from this one: end as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        _asked.append(number)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def tell(error: BaseException, text: str | None = None) -> int:
    """Print the one line, and return the exit status: 130 for Ctrl-C, 143 for SIGTERM, as shells have them.

    Another Ctrl-C, for whoever does not want to wait until libraries have closed down, then ends the process at once.

    Args:
        error: KeyboardInterrupt or Terminated, or what a library made of them (`asked`).
        text: What is kept, of a command that knows; else what was said of it (`keep`).
    """
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    terminated = isinstance(error, Terminated) or signal.SIGTERM in _asked[:1]
    if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks for all
        word = "terminated" if terminated else "interrupted"
        print(f"\n{word}: {text or kept() or 'nothing was kept; the same command starts anew'}", file=sys.stderr)
    return TERMINATED if terminated else INTERRUPTED
