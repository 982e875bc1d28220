"""What records say of files, and how a job learns what its processes made."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

# the environment variable that names the file in which a job's processes note what they made
NOTES = "MFCORE_NOTES"


def digest(content: object) -> str:
    """Eight hex digits that stand for ``content`` (plain data), the same on every machine."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hex."""
    with Path(path).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def recorded(path: Path) -> dict[str, int | str]:
    """What a record keeps of a file: sha256, bytes and mtime_ns."""
    state = path.stat()
    return {"sha256": file_sha256(path), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def is_as_recorded(path: Path, facts: Mapping, whole: bool = False) -> bool:
    """Whether a file has the content that ``facts`` (of `recorded`) say.

    Size and time are enough, unless ``whole``.
    """
    state = path.stat()
    if not whole and (state.st_size, state.st_mtime_ns) == (facts["bytes"], facts.get("mtime_ns")):
        return True
    return state.st_size == facts["bytes"] and file_sha256(path) == facts["sha256"]


def note_made(kind: str, path: Path) -> None:
    """Note for this process's job (`sweep.run.run_job`) that a "run" or a "file" was made."""
    if notes := os.environ.get(NOTES):
        with Path(notes).open("a", encoding="utf-8") as out:
            out.write(json.dumps([kind, str(Path(path).absolute())]) + "\n")
