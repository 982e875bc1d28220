"""In what two nested mappings differ, by dotted names."""

from collections.abc import Mapping


def differences(left: Mapping, right: Mapping, where: str = "") -> list[str]:
    """Dotted names of the keys in which two nested mappings differ."""
    names = []
    for key in sorted(set(left) | set(right)):
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += differences(a, b, f"{where}{key}.")
        elif a != b or (key in left) != (key in right):
            names.append(f"{where}{key}")
    return names


def changes(was: Mapping, now: Mapping) -> list[str]:
    """Each key in which two nested mappings differ, as "card.std was 0.5, is 0.2"."""

    def value(content: object, name: str) -> str:
        for part in name.split("."):
            if not isinstance(content, Mapping) or part not in content:
                return "not there"
            content = content[part]
        text = str(content)
        return text if len(text) <= 80 else f"{text[:77]}..."

    return [
        f"{name} was {value(was, name)}, is {value(now, name)}" for name in differences(was, now)
    ]
