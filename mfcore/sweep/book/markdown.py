"""Markdown for MyST that shows a text literally: no name in a study or label file is markup."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # a backslash before any of these makes it literal
NUMBER = re.compile(r"<?[-+−]?\d[\d,.]*(e-?\d+)?[^A-Za-z]*(\(.*\))?|–|")  # as in tables.js


def text(value: object) -> str:
    """Any value in one line, literally. No line breaks between a number and its per cent sign."""
    return _literal(" ".join(str(value).split()))


def _literal(words: str) -> str:
    return PUNCTUATION.sub(r"\\\1", re.sub(r"(?<=\d)\s%", "\N{NO-BREAK SPACE}%", words))


def caption(words: str) -> str:
    """A caption in one line: a bold title before it and its code are markup, the rest literal."""
    words = " ".join(words.split())
    title = re.match(r"\*\*(.+?)\*\*(?!\*)", words)
    bold = f"**{_with_code(title[1])}**" if title else ""
    return bold + _with_code(words[title.end() :] if title else words)


def _with_code(words: str) -> str:
    parts = re.split(r"((?<!`)`[^`]+`(?!`))", words)
    return "".join(part if i % 2 else _literal(part) for i, part in enumerate(parts))


def first_sentence(words: str) -> str:
    """The first sentence of a caption, without markup."""
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", words.strip(), maxsplit=1)[0]
    return sentence.replace("**", "").replace("`", "")


def is_number(cell: str) -> bool:
    """Whether a cell of a table is a number, with or without an SD or interval, or empty."""
    return NUMBER.fullmatch(" ".join(cell.split())) is not None


def _shown(cell: str, is_p: bool) -> str:
    """A number with commas, or three digits after the point, or two that count where it is small.

    A small p is shown as below 0.001, any other cell as it is.
    """
    if re.fullmatch(r"\d{4,}", cell):
        return f"{int(cell):,}"
    if not re.fullmatch(r"-?\d+\.\d{4,}|-?\d(\.\d+)?e-\d+", cell):
        return cell
    is_small = 0 < abs(float(cell)) < 0.001
    small = "<0.001" if is_p else f"{float(cell):.2g}"
    return small if is_small else f"{float(cell):.3f}"


def table(rows: Sequence[Mapping], columns: Sequence[str] = (), ready: Sequence[str] = ()) -> str:
    """Rows as a table, columns of numbers to the right; those of ``ready`` are Markdown already."""
    table = []
    for name in columns or rows[0]:
        is_p = name == "p" or name.endswith(("_p", " p")) or name.startswith(("p_", "p "))
        cells = [_shown(str(row.get(name, "")), is_p) for row in rows]
        side = "---:" if name and all(map(is_number, cells)) else "---"
        words = cells if name in ready else map(text, cells)
        table.append([text(name.replace("_", " ")), side, *words])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*table, strict=True)) + "\n"


def figure(path: str, words: str, alt: str, width: str) -> str:
    """A figure with its caption, which is Markdown; a click shows it in full size."""
    options = f":width: {width}\n:alt: {json.dumps(alt)}"
    return f":::{{figure}} {path}\n{options}\n\n{words}\n:::\n"


def toctree(entries: Iterable[tuple[str, str]], title: str = "") -> str:
    """A part of the navigation: title and document of each page."""
    lines = [f":caption: {title}"] if title else []
    lines += [":hidden:", ":maxdepth: 2", ""]
    for name, document in entries:
        name = " ".join(name.split()).lstrip("`~:")  # none of these may begin a line
        name = name.replace("://", ":\N{WORD JOINER}//")  # else the line is an address
        lines.append(f"{name or '-'} <{document}>")
    return "\n".join(["```{toctree}", *lines, "```", ""])


def box(kind: str, title: str, words: str) -> str:
    """A box, as "error" or "note", with a title around Markdown."""
    return f"::::{{admonition}} {text(title)}\n:class: {kind}\n\n{words}\n::::\n"
