"""What an untrusted config may build: an allow-list over the whole tree, checked before anything is imported or built.

An untrusted config belongs to files of others: a run folder's ``config.yaml``, the card ``student.json``. What you
compose from config folders and overrides yourself is your code, and is not checked.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.plain import KeyPath, dotted, read_plain, resolved, walk
from lit_distill.untrusted.targets import MAX_TRANSFORMS, TRANSFORMS, Rule, rule_of

__all__ = ["check_allow", "check_targets", "read_config"]

_TARGET = "_target_"
_MAX_TARGETS = 2_000
_MAX_NAME = 1_000  # characters of a text that is held against a pattern
_SHOWN = 5  # things that a message names
_KINDS = {"_partial_": bool, "_recursive_": bool, "_convert_": str, "_args_": list}
_OWN_KEYS = {_TARGET, "_partial_", "_convert_", "_recursive_"}
_NEVER = sys.stdlib_module_names | {"builtins", "hydra", "omegaconf", "pip", "pkg_resources", "setuptools"}
_BY_FULL_NAME = {
    "lightning",
    "lit_distill",
    "numpy",
    "pytorch_lightning",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
}


def read_config(
    path: str | os.PathLike[str], *, allow: Collection[str] = (), run_dir: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Read an untrusted YAML or JSON config, and check it.

    Args:
        path: the file; tags, anchors, aliases and anything past 1 MB are refused.
        allow: as for :func:`check_targets`.
        run_dir: as for :func:`check_targets`.

    Returns:
        The checked config without interpolations: build from this, not from the file.

    Raises:
        ValueError: the file is refused, or what it would build is.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "config.yaml"
        >>> _ = file.write_text("{width: 4, layer: {_target_: torch.nn.Linear, _args_: ['${width}', 2]}}")
        >>> read_config(file)["layer"]["_args_"]
        [4, 2]
    """
    tree = read_plain(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is refused: a config is a mapping, got {type(tree).__name__}")
    try:
        return check_targets(tree, allow=allow, run_dir=run_dir)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_targets(config: Any, *, allow: Collection[str] = (), run_dir: str | os.PathLike[str] | None = None) -> Any:
    """Check every ``_target_`` of an untrusted config, and its arguments, against the allow-list.

    The whole tree is checked after interpolation: nested, in lists, in ``_args_``, under ``_partial_``. Admitted are
    the classes and factories that this library's configs need: its own losses, models, data, schedules, callbacks and
    loggers, layers and losses of ``torch.nn``, optimizers and schedulers of torch, torchvision's transforms v2,
    Lightning's Trainer and those of its callbacks and loggers that run nothing by name; each with the arguments that
    name no code, no address, and no place to write outside the run folder.

    Args:
        config: nested dicts and lists.
        allow: packages (``"my_package"``), or full names, that the caller admits besides. The config has no say in it.
        run_dir: the run folder; it replaces ``run_dir`` in the config, and files may be written in it alone. None:
            arguments that name a place to write must be null.

    Returns:
        The config as plain dicts and lists without interpolations: build from this, so that what is built is what was
        checked.

    Raises:
        ValueError: something is not admitted; the first five things are listed, by key and target.

    Example:
        >>> check_targets({"loss": {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1}})
        {'loss': {'_target_': 'torch.nn.CrossEntropyLoss', 'label_smoothing': 0.1}}
        >>> check_targets({"loss": {"_target_": "os.system", "command": "true"}})
        Traceback (most recent call last):
        ...
        ValueError: 1 thing in an untrusted config is not admitted: loss: 'os.system'. ...
    """
    check_allow(allow)
    tree = config
    if run_dir is not None and isinstance(tree, dict) and "run_dir" in tree:
        tree = {**tree, "run_dir": str(Path(run_dir).absolute())}
    plain = resolved(tree)
    check_count(plain)
    faults = [fault for path, value in walk(plain) for fault in _faults(path, value, allow, run_dir)]
    targets = (str(value.get(_TARGET)) for _, value in walk(plain) if isinstance(value, Mapping))
    if sum(target.startswith(TRANSFORMS) for target in targets) > MAX_TRANSFORMS:  # each may enlarge an image
        faults.append(f"more than {MAX_TRANSFORMS} of {TRANSFORMS}")
    if not faults:  # only what the caller admits is imported, and only when nothing else is wrong
        faults = [fault for path, value in walk(plain) for fault in _foreign(path, value, allow)]
    if faults:
        things = "1 thing" if len(faults) == 1 else f"{len(faults)} things"
        things += f" in an untrusted config {'is' if len(faults) == 1 else 'are'}"
        named = "; ".join(fault[:200] for fault in faults[:_SHOWN])
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError(
            f"{things} not admitted: {named}{more}. If you trust a package with your machine, admit it: "
            '--allow my_package on the command line, allow=("my_package",) in Python'
        )
    return plain


def check_count(plain: Any) -> None:
    """Refuse plain data that builds more objects than a run has: each is checked, imported, built and run on its own.

    Raises:
        ValueError: it names more than 2,000 targets.
    """
    if sum(isinstance(value, Mapping) and _TARGET in value for _, value in walk(plain)) > _MAX_TARGETS:
        raise ValueError(f"it names more than {_MAX_TARGETS:,} targets, the limit on an untrusted config")


def check_allow(allow: Collection[str]) -> None:
    """Check the packages and full names that a caller admits.

    Raises:
        ValueError: an entry is no name, or would admit nearly anything, such as ``os``, ``hydra`` or all of ``torch``.
    """
    if isinstance(allow, str):
        raise ValueError(f"allow is a collection of names, got the text {allow!r}: write allow=({allow!r},)")
    for entry in allow:
        if not isinstance(entry, str) or not re.fullmatch(r"[A-Za-z]\w*(?:\.[A-Za-z_]\w*)*", entry):
            raise ValueError(f"allow expects a package or a full name, such as my_package.MyModel, got {entry!r}")
        top = entry.partition(".")[0]
        if top in _NEVER:
            raise ValueError(f"allow cannot admit {entry!r}: it runs anything by name; wrap what you need in a package")
        if entry in _BY_FULL_NAME:
            raise ValueError(f"allow cannot admit all of {entry!r}: name what you need, such as {entry}.some.Class")


def _faults(path: KeyPath, value: Any, allow: Collection[str], run_dir: str | os.PathLike[str] | None) -> Iterator[str]:
    is_name = len(path) > 1 and path[-2] == "class_names"  # of a list of them: nobody opens it
    if isinstance(value, str) and is_address(value) and not is_name:
        yield f"{dotted(path)}: {_shown(value)} is an address; files are local"
    if not isinstance(value, Mapping) or _TARGET not in value:
        return
    target = value[_TARGET]
    if not isinstance(target, str):
        yield f"{dotted(path)}: _target_ is a name, got {type(target).__name__}"
        return
    for name, argument in value.items():
        if not isinstance(name, str) or not name.isidentifier():
            yield f"{dotted((*path, name))} of {_shown(target)}: an argument is named by an identifier"
        elif name in _KINDS and not isinstance(argument, _KINDS[name]):
            yield f"{dotted((*path, name))}: expected {_KINDS[name].__name__}, got {type(argument).__name__}"
    if _admitted_by(target, allow) is not None:
        return
    rule = rule_of(target)
    if rule is None:
        yield f"{dotted(path)}: {_shown(target)}"
        return
    for name, argument in value.items():
        if name not in _OWN_KEYS and argument is not None and argument != "???":  # not given: it is not built
            fault = _argument_fault(name, argument, rule, run_dir)
            if fault:
                yield f"{dotted((*path, name))} of {target}: {fault}"


def _argument_fault(name: str, argument: Any, rule: Rule, run_dir: str | os.PathLike[str] | None) -> str | None:
    if name == "_args_" and (not rule.positional or (rule.numbers and list(_numbers(argument)))):
        return "its arguments go by name"
    low, high = rule.numbers.get(name, rule.numbers.get("", (-math.inf, math.inf)))
    if rule.numbers and not all(low <= number <= high for number in _numbers(argument)):
        return f"expected numbers from {low:g} to {high:g}"
    if name == "_args_":
        return None
    if rule.arguments is not None and name not in rule.arguments:
        return "this argument is not admitted"
    if name in rule.existing and not (isinstance(argument, str) and _is_folder(argument)):
        return f"{_shown(argument)} is no folder that exists"
    if name in rule.written:
        return _place_fault(argument, run_dir)
    if name in rule.parts and (not isinstance(argument, Mapping) or argument.get(_TARGET) != rule.parts[name]):
        return f"expected a {rule.parts[name]}"
    for text in _texts(argument):
        if name in rule.patterns:
            # a pattern may take the square of a text's length
            if len(text) > _MAX_NAME or not re.fullmatch(rule.patterns[name], text) or ".." in text or "__" in text:
                return f"{_shown(text)} is not admitted"
        elif rule.texts is not None and name not in rule.texts:
            return f"the text {_shown(text)} is not admitted"
    return None


def _place_fault(argument: Any, run_dir: str | os.PathLike[str] | None) -> str | None:
    if run_dir is None:
        return f"{_shown(argument)} is a place to write, and no run folder was named: leave it null"
    if not isinstance(argument, str):
        return f"a place to write is text, got {type(argument).__name__}"
    if not Path(argument).resolve().is_relative_to(Path(run_dir).resolve()) or argument.startswith("~"):
        return f"{_shown(argument)} is a place to write outside the run folder"
    return None


def _numbers(argument: Any) -> Iterator[float]:
    """The numbers of an argument, without those of nested targets."""
    if isinstance(argument, (int, float)):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from _numbers(item)


def _texts(argument: Any) -> Iterator[str]:
    """The texts of an argument, without those of the nested targets, which have rules of their own."""
    if isinstance(argument, str):
        yield argument
    elif isinstance(argument, Mapping):
        if _TARGET not in argument:
            for item in argument.values():
                yield from _texts(item)
    elif isinstance(argument, Sequence):
        for item in argument:
            yield from _texts(item)


def _admitted_by(target: str, allow: Collection[str]) -> str | None:
    """The entry of ``allow`` that names the target or a package around it."""
    if any(not part.isidentifier() or part.startswith("__") for part in target.split(".")):
        return None
    return next((entry for entry in allow if target == entry or target.startswith(f"{entry}.")), None)


def _foreign(path: KeyPath, value: Any, allow: Collection[str]) -> Iterator[str]:
    """What an admitted package only imports: ``my_package.os.system`` is none of its own."""
    if not isinstance(value, Mapping) or _TARGET not in value:
        return
    target = value[_TARGET]
    entry = _admitted_by(target, allow)
    if entry is None or entry == target:  # named in full: the caller's own choice
        return
    found = located(target)
    home = getattr(found, "__module__", None)
    if not callable(found):
        yield f"{dotted(path)}: {_shown(target)} is nothing that can be called"
    elif not isinstance(home, str) or not f"{home}.".startswith(f"{entry}."):
        yield f"{dotted(path)}: {_shown(target)} is {home}.{getattr(found, '__qualname__', '?')}, none of {entry}'s own"


def located(target: str) -> Any:
    """What a full name stands for; its modules are imported, so that only an admitted name may be asked for."""
    first, *rest = target.split(".")
    found: Any = importlib.import_module(first)
    name = first
    for part in rest:
        name = f"{name}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name and not name.startswith(f"{error.name}."):
                    raise
        found = getattr(found, part, None)
    return found


def _shown(value: Any, most: int = 120) -> str:
    text = ascii(value)  # no control characters to a terminal
    return text if len(text) <= most else f"{text[:most]}…"


def _is_folder(path: str) -> bool:
    """Whether there is a folder of this name; ``~/`` is the home folder, ``~name`` a name, as everywhere."""
    return os.path.isdir(os.path.expanduser(path) if re.match(r"~(/|$)", path) else path)
