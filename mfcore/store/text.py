"""YAML and JSON that people write: a key that stands twice, of which readers take the last without a word, is refused."""

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

MAX_TOLD = 10  # keys


class TwiceError(ValueError):
    """A text says a key twice, of which readers take the last; the message names keys and lines, and the remedy."""

    def __init__(self, found: Sequence[tuple[object, int, int]]):
        more = f"; and {len(found) - MAX_TOLD} more" if len(found) > MAX_TOLD else ""
        told = "; ".join(f"{key!r} on lines {first} and {line}" for key, first, line in found[:MAX_TOLD])
        super().__init__(f"said twice: {told}{more}; keep one of each")


class _Loader(yaml.SafeLoader):
    """YAML in which a mapping has each key once; what it takes over by ``<<`` it may say anew."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.twice: list[tuple[object, int, int]] = []

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as written: nothing is taken over yet
        line_of: dict[object, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = key.value if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key)
                line = key.start_mark.line + 1
                if name in line_of:
                    self.twice.append((name, line_of[name], line))
                line_of.setdefault(name, line)
        return node


def read_yaml(text: str) -> object:
    """What a YAML text says; raises YAMLError, and TwiceError where a mapping has a key twice."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if loader.twice:
            raise TwiceError(loader.twice)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def parse_json(text: str) -> Any:
    """What a JSON text says; raises JSONDecodeError, and TwiceError for a key that stands twice in one object."""
    found = []

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        content = dict(pairs)
        if len(content) < len(pairs):
            found.append(content)
        return content

    content = json.loads(text, object_pairs_hook=unique)
    if found:
        raise TwiceError(_twice_in_json(text))
    return content


def _twice_in_json(text: str) -> list[tuple[str, int, int]]:
    """Each key that its object has already, with both lines, of a JSON text."""
    found, objects, line, last = [], [], 1, ("", 0)
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}:\n]', text):
        sign = token[0]
        if sign == "\n":
            line += 1
        elif sign == "{":
            objects.append({})
        elif sign == "}":
            objects.pop()
        elif sign != ":":
            last = sign, line
        elif (key := json.loads(last[0])) in objects[-1]:
            found.append((key, objects[-1][key], last[1]))
        else:
            objects[-1][key] = last[1]
    return found
