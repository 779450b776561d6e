"""Processes of an engine that outlive the program that has started them, when it is killed: they would keep its GPUs.

vLLM runs in processes of its own, which do not see that nobody is left to ask them. They are noted in a file while they
start, by number and time of birth, so that the next run can end them, and no others.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import read_json, write_json
from lm_eval_edit.errors import UserError

PROCESSES = "processes.json"
_INTERVAL = 0.5  # seconds between two looks; a process that a kill leaves unnoted is younger than that


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """A context in which the processes that this one starts are noted in a folder, until `forget`."""
    ended = threading.Event()
    before = _family()

    def look() -> None:
        known: list[list[float]] = []
        while True:
            last = ended.is_set()
            found = [each for each in _family() if each not in before]
            if found != known:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / PROCESSES, {"host": socket.gethostname(), "processes": found})
                known = found
            if last:
                return
            ended.wait(_INTERVAL)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def forget(folder: Path) -> None:
    """The processes noted in a folder have been ended."""
    (folder / PROCESSES).unlink(missing_ok=True)


def end_left_over(folder: Path) -> int:
    """End the processes noted in a folder. Nobody else may be at work there.

    Returns:
        How many there still were.
    """
    psutil = _psutil()
    try:
        held = read_json(folder / PROCESSES)
        wanted = held["processes"] if held["host"] == socket.gethostname() else []
    except (UserError, LookupError, TypeError):
        return 0
    left = []
    for number, born in wanted:
        with contextlib.suppress(psutil.Error, ValueError, TypeError):
            process = psutil.Process(number)
            if process.create_time() == born:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=60)
    forget(folder)
    return len(left)


def end_all_left_over(folder: Path, at_work: Callable[[str], bool] = lambda name: False) -> int:
    """End what is noted in the folders in a folder, each of another program, by those that ran on this machine.

    Args:
        at_work: Whether the program of the folder of a name may be at work.

    Returns:
        How many processes there still were.
    """
    count, found = 0, list[Path]()
    with contextlib.suppress(FileNotFoundError):  # another program may be clearing up as well
        found = sorted(folder.iterdir())
    for each in found:
        if at_work(each.name):
            continue
        with contextlib.suppress(UserError, LookupError, TypeError):
            if read_json(each / PROCESSES)["host"] == socket.gethostname():
                count += end_left_over(each)
        with contextlib.suppress(OSError):  # of another machine, whose own next run ends it
            each.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
    return count


def _family() -> list[list[float]]:
    """[number, time of birth] of every process that this one, or one of them, has started."""
    psutil = _psutil()
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append([process.pid, process.create_time()])
    return sorted(found)


def _psutil() -> Any:
    import psutil  # peft and vLLM need it too

    return psutil
