"""What a command line says where the file system refuses: file, reason, remedy."""

import errno
import os

import pytest

from mfcore.store import StoreError, errors as store_errors


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "x: Permission denied; give this user the right to, or name another place"),
        (errno.EROFS, "x: Read-only file system; name another place"),
        (errno.ENOTDIR, "x: Not a directory; a file stands where a folder is needed; remove it, or name another place"),
        (errno.ENOENT, "x: No such file or directory; check the path, and whether what makes it has been run"),
        (errno.ENOSPC, "x: No space left on device; make room and run again, it goes on where it stopped"),
        (errno.EIO, "x: Input/output error; check the disk"),
    ],
)
def test_the_file_systems_errors_get_a_remedy(number, said):
    assert store_errors.told(OSError(number, os.strerror(number), "x")) == said


@pytest.mark.parametrize(
    "error", [StoreError("runs: gone; run it again"), OSError("can't open file a.h5"), ValueError("a\n  b")]
)
def test_a_message_of_ones_own_stays(error):
    assert store_errors.told(error) == str(error)
