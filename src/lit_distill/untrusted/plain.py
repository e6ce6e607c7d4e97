"""Configs of others as plain data: limits on their size, no tags or aliases, and interpolations that only point."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lit_distill.untrusted.budgets import decoded
from lit_distill.untrusted.opening import UntrustedFileError, read_untrusted

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_JSON_VALUES = 200_000
MAX_DEPTH = 32
MAX_TEXT = 100_000
_MAX_NAME = 1_000
_MAX_PATH = 300
_MAX_NUMBER = 64
_MAX_CHAIN = 4 * MAX_DEPTH
_MAX_ALL_TEXT = 4_000_000

KeyPath = tuple[str | int, ...]
# ${a.b[0]} and ${..sibling}; no resolver (${oc.env:HOME}), nothing nested, nothing quoted.
_POINTER = re.compile(r"\$\{\s*(\.*)([A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*)\s*\}")
_PLAIN = (str, int, float, bool, type(None))
_LARGEST = 2**64
_NO_KEY = object()
# libyaml compares each directive with all before it; no config needs one.
_DIRECTIVE = re.compile("(?:\\A|[\\r\\n\\x85\\u2028\\u2029])\\ufeff?%")
PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Of YAML: the one in C, which is some hundred times as fast."""
_TAGS = "tag:yaml.org,2002:"
# What Hydra takes for a number, and YAML 1.1 for text: 1e-4, 1_000.5.
_NUMBER = re.compile(
    r"[-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?"
)


def read_plain(path: str | os.PathLike[str], *, limit: int = MAX_BYTES, values: int = MAX_JSON_VALUES) -> Any:
    """The content of a YAML or JSON file as dicts, lists and plain values, interpolations unresolved.

    Args:
        path: the file.
        limit: most bytes that it may have.
        values: most that one of JSON may have; they are counted, as commas and brackets, before they are made.

    Raises:
        ValueError: it is too large or too deep, or has tags, anchors, aliases, duplicate keys, several documents, or
            whole numbers of more than 64 bits.
    """
    file = Path(path)
    content = read_untrusted(file, what="a config", limit=limit)
    try:
        text = decoded(file, content)
        if file.suffix != ".json":
            return parse_yaml(text)
        if sum(map(content.count, (b",", b"[", b"{"))) > values:
            raise ValueError(f"it has more than {values:,} values")
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except UntrustedFileError:
        raise
    except (RecursionError, yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{file} is refused: {said}") from error


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) < _MAX_NUMBER else _LARGEST + 1
    if abs(value) > _LARGEST:
        raise ValueError(f"a whole number has at most 64 bits, got {_short(digits)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the key {_short(name)} stands twice")
        made[name] = value
    return made


def parse_yaml(text: str) -> Any:
    """One document of plain values. Events are read and not nodes, so that nothing nests before its depth is known."""
    _check_directives(text)
    document: list[Any] = []
    containers: list[Any] = [document]
    keys: list[Any] = [_NO_KEY]  # of each open mapping, the one that waits for its value
    scalars = yaml.SafeLoader("")
    for number, event in enumerate(yaml.parse(text, Loader=PARSER)):
        where = f"line {event.start_mark.line + 1}"
        if number > 2 * MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values")
        if isinstance(event, yaml.CollectionEndEvent):
            containers.pop()
            keys.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        value = _value(event, scalars, where)
        into = containers[-1]
        if isinstance(into, list):
            into.append(value)
        elif keys[-1] is not _NO_KEY:
            into[keys[-1]] = value
            keys[-1] = _NO_KEY
        elif not isinstance(value, (str, int, float)):
            raise ValueError(f"{where}: a name is text or a number")
        elif isinstance(value, (int, float)) and abs(value) > _LARGEST:  # their hashes can be chosen to be the same
            raise ValueError(f"{where}: a number that is a name has at most 64 bits")
        elif value in into:
            raise ValueError(f"{where}: the key {_short(value)} stands twice")
        else:
            keys[-1] = value
        if isinstance(event, yaml.CollectionStartEvent):
            if len(containers) > MAX_DEPTH:
                raise ValueError(f"{where}: it nests deeper than {MAX_DEPTH}")
            containers.append(value)
            keys.append(_NO_KEY)
    if len(document) > 1:
        raise ValueError("it holds several documents")
    return document[0] if document else None


def check_nesting(text: str, *, depth: int, values: int) -> None:
    """Refuse YAML that nests too deep, or has too many values, before nodes are made of it.

    Raises:
        ValueError: it nests deeper, has more values, or has directives.
        yaml.YAMLError: it is malformed.

    Example:
        >>> check_nesting("a: [[b]]", depth=2, values=9)
        Traceback (most recent call last):
        ...
        ValueError: line 1: it nests deeper than 2
    """
    _check_directives(text)
    level = 0
    for number, event in enumerate(yaml.parse(text, Loader=PARSER)):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > depth:
            raise ValueError(f"line {event.start_mark.line + 1}: it nests deeper than {depth}")
        if number > 4 * values:
            raise ValueError(f"it has more than {values:,} values")


def _check_directives(text: str) -> None:
    if _DIRECTIVE.search(text):
        raise ValueError("it has directives, lines that begin with %: remove them")


def _value(event: Any, scalars: Any, where: str) -> Any:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise ValueError(f"{where}: anchors and aliases are not for untrusted configs")
    if event.tag is not None:
        raise ValueError(f"{where}: the tag {str(event.tag)[:80]!r} is not for untrusted configs")
    if isinstance(event, yaml.MappingStartEvent):
        return {}
    if isinstance(event, yaml.SequenceStartEvent):
        return []
    text: str = event.value
    if text == "<<":
        raise ValueError(f"{where}: merge keys are not for untrusted configs")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{where}: a text has at most {MAX_TEXT:,} characters")
    tag = scalars.resolve(yaml.ScalarNode, text, event.implicit)
    if event.implicit[0] and _NUMBER.fullmatch(text):
        tag = f"{_TAGS}float"
    if tag == f"{_TAGS}timestamp" or len(text) > _MAX_NUMBER:  # whole numbers to the base of 60 take time without end
        return text
    return scalars.construct_object(yaml.ScalarNode(tag, text))


def _check_interpolation(text: str, where: str) -> None:
    if "${" in _POINTER.sub("", text):
        shown = text[:80] + ("…" if len(text) > 80 else "")
        raise ValueError(
            f"{where}: {shown!r}: an untrusted config may only point to its own values (${{data.size}}); resolvers, "
            "which read the environment or make values, are refused: write the value itself"
        )


def resolved(tree: Any) -> Any:
    """A copy of plain data with every interpolation replaced by what it points to.

    Raises:
        ValueError: something is no plain value, is too large or too deep, points to nothing, or in a circle.
    """
    for path, value in walk(tree):
        if len(path) > MAX_DEPTH:
            raise ValueError(f"{dotted(path[:3])}…: it nests deeper than {MAX_DEPTH}")
        if isinstance(value, str):
            _check_interpolation(value, dotted(path))
    made = _Resolver(tree).copy((), tree)
    for path, value in walk(made):
        if isinstance(value, str) and "${" in value:  # put together from parts: whoever reads it would resolve it again
            raise ValueError(
                f"{dotted(path)}: its interpolations make a new one, which is refused: write the value itself"
            )
    return made


def walk(tree: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Every value of nested mappings and sequences with its path; those that contain come before what they contain.

    Raises:
        ValueError: there are more than ``MAX_NODES``, a name is no text, or a value is none that files hold.
    """
    waiting: list[tuple[KeyPath, Any]] = [((), tree)]
    count = 0
    while waiting:
        path, value = waiting.pop()
        count += 1
        if count > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values")
        yield path, value
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, (str, int, float)):
                    raise ValueError(f"{dotted(path)}: a name is text or a number, got {type(key).__name__}")
                if isinstance(key, str) and (len(key) > _MAX_NAME or "${" in key):
                    raise ValueError(f"{dotted(path)}: the name {_short(key)} is too long, or holds an interpolation")
            waiting += [((*path, key), item) for key, item in reversed(list(value.items()))]
        elif isinstance(value, (list, tuple)):
            waiting += [((*path, index), item) for index, item in reversed(list(enumerate(value)))]
        elif not isinstance(value, _PLAIN):
            raise ValueError(f"{dotted(path)}: a config holds text, numbers, lists and mappings, got {type(value)}")
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"{dotted(path)}: a whole number has at most 64 bits")
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"{dotted(path)}: a text has at most {MAX_TEXT:,} characters")


def dotted(path: KeyPath) -> str:
    """A path as it is written on a command line; ``the config`` for the empty one."""
    text = ".".join(map(_short, path))
    return (text if len(text) <= _MAX_PATH else f"{text[:_MAX_PATH]}…") or "the config"


def _short(text: object) -> str:
    """A name of others in a message."""
    shown = ascii(text)[1:-1] if isinstance(text, str) else str(text)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"


class _Resolver:
    """Copies a tree; what many interpolations repeat counts each time, so that nothing grows without end."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.nodes = self.characters = 0
        self.open: list[KeyPath] = []

    def copy(self, path: KeyPath, value: Any) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) + len(self.open) > _MAX_CHAIN:
            raise ValueError(f"{dotted(path)}: its interpolations grow to more than {MAX_NODES:,} values, or too deep")
        if isinstance(value, Mapping):
            return {key: self.copy((*path, key), item) for key, item in value.items()}
        if isinstance(value, str):
            return self._text(path, value)
        if isinstance(value, Sequence):
            return [self.copy((*path, index), item) for index, item in enumerate(value)]
        return value

    def _text(self, path: KeyPath, text: str) -> Any:
        whole = _POINTER.fullmatch(text)
        if whole:
            return self._target(path, whole)
        made = _POINTER.sub(lambda match: self._inserted(path, match), text)
        self.characters += len(made)
        if len(made) > MAX_TEXT or self.characters > _MAX_ALL_TEXT:
            raise ValueError(f"{dotted(path)}: its interpolations grow to more than {MAX_TEXT:,} characters")
        return made

    def _inserted(self, path: KeyPath, match: re.Match[str]) -> str:
        value = self._target(path, match)
        if isinstance(value, (dict, list)):
            raise ValueError(f"{dotted(path)}: {_short(match[0])} is no plain value, and cannot stand within a text")
        text = str(value)
        self.characters += len(text)
        if self.characters > _MAX_ALL_TEXT:
            raise ValueError(f"{dotted(path)}: its interpolations grow to more than {_MAX_ALL_TEXT:,} characters")
        return text

    def _target(self, path: KeyPath, match: re.Match[str]) -> Any:
        dots, name = len(match[1]), match[2]
        base: KeyPath = path[: max(0, len(path) - dots)] if dots else ()
        parts = re.findall(r"[\w-]+", name)
        place, value = base, self._at(base)
        for part in parts:
            key = _key(value, part)
            if key is None:
                raise ValueError(f"{dotted(path)}: {_short(match[0])} points to nothing")
            place, value = (*place, key), value[key]
            # a pointer to a mapping that the path goes through
            pointer = _POINTER.fullmatch(value) if isinstance(value, str) else None
            if pointer is not None:
                value = self._within(place, pointer)
        if value == "???":
            raise ValueError(f"{dotted(path)}: {_short(match[0])} points to a value that is not given")
        if place in self.open or place == path[: len(place)]:
            raise ValueError(f"{dotted(path)}: {_short(match[0])} points in a circle")
        with self._at_work(place):
            return self.copy(place, value)

    def _within(self, place: KeyPath, pointer: re.Match[str]) -> Any:
        if place in self.open:
            raise ValueError(f"{dotted(place)}: {_short(pointer[0])} points in a circle")
        with self._at_work(place):
            return self._target(place, pointer)

    @contextmanager
    def _at_work(self, place: KeyPath) -> Iterator[None]:
        if len(self.open) >= _MAX_CHAIN:
            raise ValueError(f"{dotted(place)}: more than {_MAX_CHAIN} interpolations point to each other")
        self.open.append(place)
        try:
            yield
        finally:
            self.open.pop()

    def _at(self, path: KeyPath) -> Any:
        value = self.tree
        for part in path:
            value = value[part]
        return value


def _key(value: Any, part: str) -> Any:
    """The key of a container that ``part`` names, or None."""
    number = int(part) if part.isascii() and part.isdecimal() and len(part) < _MAX_NUMBER else None
    if isinstance(value, Mapping):
        return part if part in value else number if number in value else None
    if isinstance(value, Sequence) and not isinstance(value, str) and number is not None:
        return number if number < len(value) else None
    return None
