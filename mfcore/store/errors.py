"""The error of a missing result, and the file system's errors with a remedy."""

import errno


class StoreError(RuntimeError):
    """A result is missing, unfinished or not what it should be; with the remedy."""


REMEDIES = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "give this user the right to, or name another place"
    ),
    errno.EROFS: "name another place",
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST),
        "a file stands where a folder is needed; remove it, or name another place",
    ),
    errno.EISDIR: "a folder stands where a file is needed; remove it, or name another place",
    errno.ENOENT: "check the path, and whether what makes it has been run",
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "make room and run again, it goes on where it stopped"
    ),
}


def told(error: Exception) -> str:
    """An error's message; for an error of the file system: file, reason and remedy."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    remedy = REMEDIES.get(error.errno or 0, "check the disk")
    return f"{error.filename}: {error.strerror}; {remedy}"
