"""YAML and JSON that people write: a key that stands twice is refused."""

import json
from typing import Any

import yaml


class TwiceError(ValueError):
    """A text says a key twice, of which readers take the last; with key and remedy."""


class _Loader(yaml.SafeLoader):
    """YAML in which a mapping has each key once; what it takes over by ``<<`` it may say anew."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as written: nothing is taken over yet
        line_of: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in line_of:
                lines = f"lines {line_of[name]} and {line}"
                raise TwiceError(f"said twice: {name!r} on {lines}; keep one of each")
            line_of[name] = line
        return node


def read_yaml(text: str) -> Any:
    """What a YAML text says; raises YAMLError, and TwiceError where a mapping has a key twice."""
    return _Loader(text).get_single_data()


def parse_json(text: str) -> Any:
    """What a JSON text says; raises JSONDecodeError, or TwiceError for a key twice in an object."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in content if keys.count(key) > 1)
        raise TwiceError(f"said twice: {twice!r} in one object; keep one of each")
    return content
