"""Markdown for MyST that shows a text literally: no name in a study or in a label file becomes markup."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # a backslash before any of these makes it literal
NUMBER = re.compile(r"[-+−]?\d[\d,.]*(e-?\d+)?( ?%)?( ± [\d.]+)?( \(.*\))?|–|")


def text(value: object) -> str:
    """Any value in one line, literally. No line breaks between a number and its per cent sign."""
    return _literal(" ".join(str(value).split()))


def _literal(words: str) -> str:
    return PUNCTUATION.sub(r"\\\1", re.sub(r"(?<=\d)\s%", "\N{NO-BREAK SPACE}%", words))


def caption(words: str) -> str:
    """A caption in one line: the bold title before it and its code are markup, all else is literal."""
    words = " ".join(words.split())
    title = re.match(r"\*\*(.+?)\*\*(?!\*)", words)
    bold = f"**{_with_code(title[1])}**" if title else ""
    return bold + _with_code(words[title.end() :] if title else words)


def _with_code(words: str) -> str:
    parts = re.split(r"((?<!`)`[^`]+`(?!`))", words)
    return "".join(part if i % 2 else _literal(part) for i, part in enumerate(parts))


def first_sentence(words: str) -> str:
    """The first sentence of a caption, without markup; a bold title before it goes with it."""
    title, _, rest = words.removeprefix("**").partition("**") if words.startswith("**") else ("", "", words)
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", rest.strip(), maxsplit=1)[0]
    return ": ".join(filter(None, [title.strip(" ."), sentence])).replace("**", "").replace("`", "")


def is_number(cell: str) -> bool:
    """Whether a cell of a table is a number, with or without an SD or interval, or empty."""
    return NUMBER.fullmatch(" ".join(cell.split())) is not None


def _shown(cell: str) -> str:
    """A number with commas and no more than three digits after the point; any other cell as it is."""
    if re.fullmatch(r"\d{4,}", cell):
        return f"{int(cell):,}"
    return f"{float(cell):.3f}" if re.fullmatch(r"-?\d+\.\d{4,}", cell) else cell


def table(rows: Sequence[Mapping], columns: Iterable[str] = (), ready: Iterable[str] = ()) -> str:
    """Rows as a table, columns of numbers to the right; ``ready`` names columns that are Markdown already."""
    columns, ready = list(columns or rows[0]), set(ready)
    cells = {name: [_shown(str(row.get(name, ""))) for row in rows] for name in columns}
    sides = ["---:" if name and all(map(is_number, cells[name])) else "---" for name in columns]
    lines = [[text(name.replace("_", " ")) for name in columns], sides]
    lines += [[cells[name][i] if name in ready else text(cells[name][i]) for name in columns] for i in range(len(rows))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def figure(path: str, words: str, alt: str) -> str:
    """A figure with its caption, which is Markdown; a click shows it in full size."""
    return f":::{{figure}} {path}\n:width: 100%\n:alt: {json.dumps(alt)}\n\n{words}\n:::\n"


def toctree(entries: Iterable[tuple[str, str]], title: str = "", depth: int = 2) -> str:
    """A part of the navigation: title and document of each page."""
    lines = [f":caption: {title}"] if title else []
    lines += [":hidden:", f":maxdepth: {depth}", ""]
    for name, document in entries:
        name = " ".join(name.split()).lstrip("`~:")  # none of these may begin a line
        name = name.replace("://", ":\N{WORD JOINER}//")  # Sphinx would take the line for an address
        lines.append(f"{name or '-'} <{document}>")
    return "\n".join(["```{toctree}", *lines, "```", ""])


def box(kind: str, words: str) -> str:
    """A box, as "error" or "note", around Markdown."""
    return f"::::{{{kind}}}\n{words}\n::::\n"
