"""Locks: one process works on a folder at a time, on one machine or on several."""

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from mfcore.store.errors import StoreError

# what file systems without locks say
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def in_turn(folder: str | Path, name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock ``name`` of a folder; wait for it where another process holds it.

    The system lets it go however a process ends. Where the file system has no locks, nobody waits.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, how)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield


@contextlib.contextmanager
def alone(folder: str | Path, who: str) -> Iterator[None]:
    """Hold a folder's lock without waiting; ``who`` names the process, as in "sweep".

    Raises StoreError where another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(in_turn(folder, who, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise StoreError(
                f"another {who} is at work on {folder}; wait for it, or stop it"
            ) from None
        yield
