"""Names of files, for names of any text."""

import hashlib
import re

# characters of a name that its file shows; the ends of names must fit into a file's name too
MAX_WORDS = 60


def file_name(text: str) -> str:
    """A part of a file's name for any text; two texts never have the same, whatever their case.

    Lower-case letters, digits and "_" are left as they are; any other text is cut to such words as
    it has and gets a digest. No dot stands in it, so that a dot divides such parts, and one "-" at
    most, before the digest.
    """
    words = words_of(text).replace(".", "_").strip("_")
    if text and text == words.lower():
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{words or 'name'}-{digest[:12]}"


def words_of(text: str) -> str:
    """What of a text can stand in a file's name: another text may have the same."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:MAX_WORDS].strip("_")
