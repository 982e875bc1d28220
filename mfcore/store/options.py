"""Options: frozen data that are checked wherever they are made, each problem named by its key.

A class of options is a pydantic dataclass. A file, Python code and `dataclasses.replace` all go
through its checks: an unknown key, a value of the wrong type and a value out of range raise
pydantic's ValidationError, a ValueError.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass


class ConfigError(ValueError):
    """A file says something that it can't say; the message names file, key and remedy."""


options = dataclass(
    frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
)

# Types of fields. "3" is no number, true is no number, and 1.0 is no whole number; a whole number
# is a number.
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, Strict()]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
PositiveShare = Annotated[Number, Field(gt=0, le=1)]
UmPerPx = Annotated[Number, Field(ge=0.01, le=100)]  # of any slide there is

# What pydantic says for programmers, by kind of problem, as a person who writes YAML calls it.
WORDS = {
    "bool_type": "should be true or false",
    "dataclass_type": "should be a mapping of keys",
    "dict_type": "should be a mapping of keys",
    "float_type": "should be a number",
    "int_type": "should be a whole number",
    "string_type": "should be text",
    "tuple_type": "should be a list",
}


def as_dict(config: Any) -> dict:
    """Options as plain data, ready for JSON and for `mfcore.store.records.digest`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name most like ``name``, as the end of a message; empty where none is like it."""
    alike = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {alike[0]}?" if alike else ""


def among(known: Collection[str]) -> AfterValidator:
    """Refuses a name that isn't one of ``known``, as they are when the name is read."""

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"{name!r} is not one of {list(known)}{nearest(name, known)}")
        return name

    return AfterValidator(check)


def repeated(names: Sequence[Any]) -> list[Any]:
    """The names that stand more than once, each once, in order."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _distinct(values: tuple) -> tuple:
    if twice := repeated([getattr(value, "name", value) for value in values]):
        raise ValueError(f"{twice[0]!r} stands twice; name each once")
    return values


def _rising(values: tuple) -> tuple:
    if values[0] > values[1]:
        raise ValueError(f"{list(values)} should have the lesser first")
    return values


Distinct = AfterValidator(_distinct)
Two = Field(min_length=2, max_length=2)
Rising = AfterValidator(_rising)


def refuse(problems: Mapping[str, str]) -> None:
    """Raise one error for all ``problems`` (text by key) from within a validator, if any."""
    if problems:
        lines = [
            {"type": "value_error", "loc": (key,), "ctx": {"error": text}}
            for key, text in problems.items()
        ]
        raise ValidationError.from_exception_data("options", lines)


def problems_of(error: ValidationError, of: type, content: object) -> list[str]:
    """Every problem of ``content`` as options ``of`` a class: key, what is wrong, what is right.

    An entry of a list is called by its name where it has one: ``networks[resnet50].batch_size``.
    """
    return [_text(line, of, content) for line in error.errors()]


def _text(line: Any, of: type, content: object) -> str:
    kind, loc, place = line["type"], line["loc"], _place(line["loc"], content)
    if kind == "missing":
        return f"key {place} is missing"
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        known = _keys(of, loc[:-1])
        hint = nearest(loc[-1], known) or f"; known keys: {sorted(known)}"
        return f"unknown key {place}{hint}"
    if kind == "value_error":
        return f"{place}: {line['ctx']['error']}"
    words = WORDS.get(kind) or line["msg"].partition(" ")[2].replace(" after validation", "")
    return f"{place}: {line['input']!r} {words}"


def _place(loc: tuple[int | str, ...], content: Any) -> str:
    """Where a problem lies, as ``networks[resnet50].batch_size``."""
    place = ""
    for part in loc:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            content = None
        name = content.get("name", content.get("id")) if isinstance(content, dict) else None
        place += f"[{name or part}]" if isinstance(part, int) else f".{part}"
    return place.removeprefix(".")


def _keys(of: type, loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the options that lie at ``loc`` within options ``of`` a class."""
    for part in loc:
        if isinstance(part, str):
            of = _options_in(typing.get_type_hints(of)[part])
    return [field.name for field in dataclasses.fields(of)]


def _options_in(hint: Any) -> type | None:
    """The class of options in a type such as ``tuple[Network, ...]``."""
    return (
        hint
        if dataclasses.is_dataclass(hint)
        else next(filter(None, map(_options_in, typing.get_args(hint))), None)
    )
