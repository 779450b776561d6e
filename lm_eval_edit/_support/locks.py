"""One writer at a time, by a lock that the system lets go of when its process ends, however it ends."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lm_eval_edit._support.files import writing
from lm_eval_edit.errors import UserError

logger = logging.getLogger("lm_eval_edit")

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def only_writer(folder: Path, who: str) -> Iterator[None]:
    """Keep other writers out of a folder, which is made if it is not there.

    Where the file system has no locks (some parallel ones), a warning says so.

    Args:
        folder: The folder.
        who: What writes there, for messages: "sweep", "run".

    Raises:
        UserError: another process has it.
        CannotWriteError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another {who} is writing {folder}; wait until it ends, or give another folder. If there is "
                f"none, the file system kept its mark: delete {folder / '.lock'}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s cannot be locked (%s): start no other %s into it", folder, error.strerror, who)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_turn(file: Path, what: str) -> Iterator[None]:
    """Wait until no other process is at work on a file that all of them would make alike.

    It saves work and guards nothing: where there are no locks, or the folder cannot be written, nobody waits.

    Args:
        file: The file, which need not be there.
        what: What is made, for the message of who waits.
    """
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("%s: another process is making %s; waiting for it", what, file)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
