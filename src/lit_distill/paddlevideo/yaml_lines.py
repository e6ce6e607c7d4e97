"""A YAML document whose every value knows its key and line, and whether anybody asked for it."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.opening import read_untrusted
from lit_distill.untrusted.plain import PARSER, check_nesting
from lit_distill.untrusted.showing import printable

Key: TypeAlias = "tuple[str | int, ...]"
Value: TypeAlias = "str | int | float | bool | list[Value] | None"

_MAX_BYTES = 100_000
_MAX_NUMBER = 64
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")}
_MAX_VALUES = 20_000
_MAX_DEPTH = 50


class ConfigError(ValueError):
    """A config that cannot be read, or that describes something this library does not have."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


@dataclass(frozen=True)
class Remark:
    """Something about one key of the document, and the line that it is on, counted from 1."""

    key: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.key} (line {self.line}): {self.text}"


class Source:
    """The document: values are taken by key, and what nobody took can be listed.

    Numbers and constants written as text, such as ``1e-4``, are what they look like. Lists of plain values are one
    value. Tags are refused: nothing is constructed but text, numbers, booleans and null.

    Raises:
        ConfigError: it is no YAML mapping, or holds tags, a key twice, or more than a config can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.remarks: list[Remark] = []
        self._values: dict[Key, Value] = {}
        self._lines: dict[Key, int] = {}
        self._taken: set[Key] = set()
        self._seen = 0  # each time that an alias repeats them
        content = read_untrusted(path, what="a config of PaddleVideo", limit=_MAX_BYTES)
        try:
            text = content.decode()
            check_nesting(text, depth=_MAX_DEPTH, values=_MAX_VALUES)
            root = yaml.compose(text, Loader=PARSER)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} holds no mapping of keys to values")
        self._walk(root, ())

    def take(self, *key: str | int, default: Value = None) -> Value:
        """The value at a key, from now on taken; ``default`` where there is none."""
        self._taken.add(key)
        value = self._values.get(key, default)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and is_address(item):
                raise self.error(key, f"expected a local path, got the address {_short(item)}: fetch it yourself")
        return value

    def number(self, *key: str | int, default: float) -> float:
        """As :meth:`take`, for a number."""
        value = self.take(*key, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            raise self.error(key, f"expected a finite number, got {_short(value)}")
        return value

    def integer(self, *key: str | int, default: int) -> int:
        """As :meth:`take`, for a whole number."""
        value = self.number(*key, default=default)
        if value != int(value):
            raise self.error(key, f"expected a whole number, got {value!r}")
        return int(value)

    def text(self, *key: str | int, default: str = "") -> str:
        """As :meth:`take`, for a text; null is the default."""
        value = self.take(*key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"expected a text, got {value!r}")
        return default if value is None else value

    def expect(self, expected: Value, key: Key, text: str) -> None:
        """Take a value that must be ``expected`` or absent; else remark ``text``."""
        if self.take(*key, default=expected) != expected:
            self.remark(key, text)

    def has(self, *key: str | int) -> bool:
        """Whether there is anything at or below a key."""
        return key in self._lines

    def children(self, *key: str | int) -> list[Key]:
        """The keys directly below ``key``, in the document's order."""
        return [found for found in self._lines if len(found) == len(key) + 1 and found[: len(key)] == key]

    def remark(self, key: Key, text: str) -> None:
        """Tell ``text`` about a key; all below it counts as taken."""
        self._taken.update(found for found in self._values if found[: len(key)] == key)
        self.remarks.append(Remark(self.name(key), self.line(key), text))

    def rest(self) -> list[Remark]:
        """A remark for every value that nobody took."""
        return [
            Remark(self.name(key), self.line(key), f"no counterpart for {_short(value)}")
            for key, value in self._values.items()
            if key not in self._taken
        ]

    def error(self, key: Key, text: str) -> ConfigError:
        """An error about a key: file, line, key and text."""
        return ConfigError(f"{self.path}, line {self.line(key)}, {self.name(key)}: {text}")

    def line(self, key: Key) -> int:
        """The line of a key, or of the nearest one above it."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key, 1)

    @staticmethod
    def name(key: Key) -> str:
        """A key as text: ``PIPELINE.train.transform[0].Scale``."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")

    def _walk(self, node: yaml.Node, key: Key) -> None:
        self._seen += len(node.value) if isinstance(node, yaml.SequenceNode) else 1
        if self._seen > _MAX_VALUES or len(key) > _MAX_DEPTH:
            raise self.error(key, "more values than any config has")
        self._lines.setdefault(key, node.start_mark.line + 1)
        plain = _plain(node)
        if plain is not None:
            value = _converted(plain)
            if any("${" in str(item) for item in (value if isinstance(value, list) else [value])):
                raise self.error(
                    key, f"expected plain text, got an interpolation, {_short(value)}: write the value itself"
                )
            self._values[key] = value
        elif isinstance(node, yaml.CollectionNode) and not node.value:
            self._values[key] = None
        elif isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            for name, child in self._pairs(node, key):
                self._walk(child, (*key, name))
        elif isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            for index, child in enumerate(node.value):
                self._walk(child, (*key, index))
        else:
            raise self.error(key, f"the tag {node.tag} is refused; plain values only")

    def _pairs(self, node: yaml.MappingNode, key: Key) -> Iterator[tuple[str, yaml.Node]]:
        for name_node, child in node.value:
            if not isinstance(name_node, yaml.ScalarNode) or name_node.value == "<<":
                raise ConfigError(f"{self.path}, line {name_node.start_mark.line + 1}: a key that is no plain text")
            name = name_node.value
            line = name_node.start_mark.line + 1
            below = (*key, name)
            if not name.isprintable() or "${" in name:
                raise ConfigError(f"{self.path}, line {line}: a key that is no plain text")
            if below in self._lines:
                raise self.error(below, f"the key stands again on line {line}: keep one")
            self._lines[below] = line
            yield name, child


def _plain(node: yaml.Node) -> yaml.Node | None:
    """The node, if it is a plain value or a list of plain values."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS:
        return node
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq" and node.value:
        return node if all(isinstance(item, yaml.ScalarNode) and _plain(item) for item in node.value) else None
    return None


def _converted(node: yaml.Node) -> Value:
    if isinstance(node, yaml.SequenceNode):
        return [_converted(item) for item in node.value]
    if len(node.value) > _MAX_NUMBER:  # whole numbers to the base of 60 take time without end
        return str(node.value)
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, str) and len(value) < 64:
        # the origin reads texts that way, so that 1e-4 (a text in YAML 1.1) is a number
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SyntaxWarning)  # "1if x": Python would print of it what it thinks
                literal = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        return literal if literal is None or isinstance(literal, (bool, int, float)) else value
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def _short(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
