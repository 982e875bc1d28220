"""How a command line tells what went wrong, also where it is the file system that refuses and says no more than a word."""

import errno

REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user the right to, or name another place"),
    errno.EROFS: "name another place",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file stands where a folder is needed; remove it, or name another place"),
    errno.EISDIR: "a folder stands where a file is needed; remove it, or name another place",
    errno.ENOENT: "check the path, and whether what makes it has been run",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room and run again, it goes on where it stopped"),
}


def told(error: Exception) -> str:
    """An error's message; of the file system's errors the file, what is wrong with it and what to do."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    remedy = REMEDIES.get(error.errno or 0, "check the disk")
    return f"{error.filename}: {error.strerror}; {remedy}"
