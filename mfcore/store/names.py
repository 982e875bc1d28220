"""Names of files, for names of any text."""

import hashlib
import re

MAX_WORDS = 60  # characters of a name that its file shows; what is written aside and ends of names must fit beside them


def file_name(text: str) -> str:
    """A part of a file's name for any text, on every file system another for another text, also where case is ignored.

    Lower-case letters, digits and "_" are left as they are; any other text is cut to such words as it has and gets a digest. No
    dot stands in it, so that a dot divides such parts, and one "-" at most, before the digest.
    """
    words = words_of(text).replace(".", "_").strip("_")
    if text and text == words.lower():
        return text
    return f"{words or 'name'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def words_of(text: str) -> str:
    """What of a text can stand in a file's name: another text may have the same."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:MAX_WORDS].strip("_")
