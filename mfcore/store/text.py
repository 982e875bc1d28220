"""YAML and JSON that people write: a key that stands twice is refused."""

import json
from collections.abc import Sequence
from typing import Any

import yaml

MAX_TOLD = 10  # keys


class TwiceError(ValueError):
    """A text says a key twice, of which readers take the last; with keys and remedy."""

    def __init__(self, keys: Sequence[str]):
        super().__init__(f"said twice: {'; '.join(keys[:MAX_TOLD])}; keep one of each")


class _Loader(yaml.SafeLoader):
    """YAML in which a mapping has each key once; what it takes over by ``<<`` it may say anew."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.twice: list[str] = []

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as written: nothing is taken over yet
        line_of: dict[object, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = (
                    key.value
                    if key.tag == "tag:yaml.org,2002:merge"
                    else self.construct_object(key)
                )
                line = key.start_mark.line + 1
                if name in line_of:
                    self.twice.append(f"{name!r} on lines {line_of[name]} and {line}")
                line_of.setdefault(name, line)
        return node


def read_yaml(text: str) -> object:
    """What a YAML text says; raises YAMLError, and TwiceError where a mapping has a key twice."""
    loader = _Loader(text)
    node = loader.get_single_node()
    if loader.twice:
        raise TwiceError(loader.twice)
    return node and loader.construct_document(node)


def parse_json(text: str) -> Any:
    """What a JSON text says; raises JSONDecodeError, or TwiceError for a key twice in an object."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice.extend(f"{key!r} in one object" for key in content if keys.count(key) > 1)
        return content

    content = json.loads(text, object_pairs_hook=unique)
    if twice:
        raise TwiceError(twice)
    return content
