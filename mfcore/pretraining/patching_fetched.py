"""Slides at addresses that fsspec opens: each in a folder of its own in TMPDIR while it is open.

A process that is killed leaves its folders behind. Each is therefore locked while its process lives, which the system ends
however the process does, and those that nobody holds go before the next slide is fetched.
"""

import contextlib
import errno
import fcntl
import shutil
import tempfile
from pathlib import Path

from mfcore.data.slides.slide import SlideError

PREFIX, LOCK = "mfcore-slide-", ".lock"
OF_SEVERAL_FILES = (".mrxs", ".vms", ".vmu", ".dcm")  # of which this one says little


class Fetched:
    """A slide copied from an address, at ``path`` until it is closed; raises SlideError where it can't be had."""

    def __init__(self, address: str):
        if address.lower().endswith(OF_SEVERAL_FILES):
            raise SlideError(f"{address}: lies in several files, of which one is fetched; copy all to a folder and name that")
        sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = (self._folder / "new").open("w")
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nobody will take it for left behind
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                (self._folder / "new").rename(self._folder / LOCK)  # never there unlocked
            (self._folder / "slide").mkdir()
            self.path = fetch(address, self._folder / "slide")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


def sweep() -> None:
    """Remove what processes that were killed have left in TMPDIR."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:  # another one's, or just going
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError while its process lives
            shutil.rmtree(folder, ignore_errors=True)


def fetch(address: str, folder: Path) -> Path:
    """Copy what fsspec finds at an address into a folder; raises SlideError where it can't be had."""
    import fsspec

    try:
        filesystem, there = fsspec.core.url_to_fs(address)
        target = folder / there.rsplit("/", 1)[-1]
        filesystem.get_file(there, str(target))
    except Exception as error:  # every file system has its own
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"make room in {tempfile.gettempdir()}, or name a larger folder in TMPDIR" if full else "check the address"
        raise SlideError(f"{address}: can't be fetched ({type(error).__name__}: {error}); {remedy}") from None
    return target
