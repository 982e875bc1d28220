"""In what two nested mappings differ, by dotted names."""

from collections.abc import Iterator, Mapping


def differences(
    was: Mapping, now: Mapping, where: str = ""
) -> Iterator[tuple[str, object, object]]:
    """The keys in which two nested mappings differ: dotted name and both values."""
    for key in sorted({*was, *now}):
        before, after = was.get(key, "not there"), now.get(key, "not there")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{where}{key}.")
        elif before != after:
            yield f"{where}{key}", before, after


def changes(was: Mapping, now: Mapping) -> list[str]:
    """Each key in which two nested mappings differ, as "card.std was 0.5, is 0.2"."""
    return [
        f"{name} was {before!s:.80}, is {after!s:.80}"
        for name, before, after in differences(was, now)
    ]
