"""What users type, as Hydra takes it: the one place where the arguments of a command are rewritten."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from lit_distill._files import expand_home

READ = (
    "run", "runs", "against", "weights", "input", "unlabelled", "checkpoint", "ckpt_path", "teacher.weights",
    "data.root", "data.roots", "data.train_list", "data.val_list", "data.test_list", "data.unlabelled",
    "data.class_names", "*.pretrained", "frozen_weights.*", "hydra.searchpath",
)  # fmt: skip
WRITTEN = (
    "output", "folder", "bad_list", "run_dir", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir",
    "hydra.runtime.output_dir", "data.cache_dir", "*.folder", "*.dirpath", "*.save_dir", "*.default_root_dir",
)  # fmt: skip
"""Keys that take paths, those of stages (``stages.<name>.data.root``) included."""
_LISTS = ("run", "runs", "against", "data.roots", "data.class_names", "hydra.searchpath")  # take [a,b] too
_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_TAKE_A_VALUE = (  # in the next word
    "--allow", "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """What the arguments of a command look like, beside Hydra's own grammar.

    Attributes:
        renamed: keys by the config's names of them. Of ``model=Teacher`` Hydra would look for conf/model/Teacher.yaml.
        replaced: whole arguments, by what stands for them.
        options: options that take a value, by the key that it goes to.
        allow: whether ``--allow <package>`` is taken, for the list ``allow``: the command reads untrusted configs.
        folders: the key of the list that words without a key go to, then keys that exclude such words.
        forwarded: the key of the list that arguments of another command go to: all that are not of this one's config.
        open_keys: mappings whose keys are the user's: Hydra wants a plus before them.
        refused: patterns of arguments that mean something else here, by the reason.
        typed: the key that the whole command goes to, as it was typed.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    allow: bool = False
    folders: tuple[str, ...] = ()
    forwarded: str = ""
    open_keys: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    typed: str = ""

    def overrides(self, typed: Sequence[str], *, own: Collection[str] = ()) -> list[str]:
        """The arguments as Hydra takes them; doing it twice changes nothing more, as processes are started by them.

        Args:
            typed: without the command's name.
            own: keys of the command's config; what has another key is forwarded.

        Raises:
            ValueError: an argument is refused, or an option lacks its value.

        Example:
            >>> Arguments(renamed={"model": "named"}, allow=True).overrides(
            ...     ["input=a (1), b.mp4", "model=Teacher", "--allow", "mine"]
            ... )
            ["input='a (1), b.mp4'", 'named=Teacher', '++allow=[mine]']
            >>> Arguments(folders=("runs", "run")).overrides(["runs/a (1)", "runs/b", "split=test"])
            ['split=test', "runs=['runs/a (1)','runs/b']"]
            >>> Arguments(forwarded="train", open_keys=("space",)).overrides(
            ...     ["sweep=kd", "experiment=kd_image", "space={seed: [0,1]}"], own=["sweep", "space"]
            ... )
            ['sweep=kd', '++space={seed: [0,1]}', "train=['experiment=kd_image']"]
        """
        kept: list[str] = []
        allowed: list[str] = []
        folders: list[str] = []
        forwarded: list[str] = []
        for words in _with_values(typed):
            argument = self.replaced.get(words[0], words[0])
            for pattern, reason in self.refused.items():
                if re.match(pattern, argument):
                    raise ValueError(f"{reason}, not {argument}")
            name, _, rest = argument.partition("=")
            value = words[1] if len(words) > 1 else rest
            key = name.lstrip("+~").partition(".")[0]
            if name == "--allow" and self.allow:
                if not re.fullmatch(r"[\w.]+", value):
                    raise ValueError(f"--allow expects a package, such as --allow my_package, got {value!r}")
                allowed.append(value)
            elif name in self.options:
                kept.append(f"{self.options[name]}={literal(value)}")
            elif argument.startswith("-"):
                kept += [argument, *words[1:]]
            elif self.folders and not argument.startswith("~") and ("=" not in argument or Path(argument).is_dir()):
                folders.append(argument)
            elif key in self.open_keys:
                kept.append(f"++{argument.lstrip('+')}")
            elif self.forwarded and key not in own:
                forwarded.append(argument)
            else:
                kept.append(f"{self.renamed[name]}={rest}" if name in self.renamed else argument)
        if folders and any(argument.partition("=")[0] in self.folders for argument in kept):
            raise ValueError(f"give folders by themselves or as {self.folders[-1]}=…, not both: {', '.join(folders)}")
        kept = as_hydra(kept)
        kept += [f"++allow=[{','.join(allowed)}]"] if allowed else []
        kept += [f"{self.folders[0]}=[{','.join(map(literal, folders))}]"] if folders else []
        kept += [f"{self.forwarded}=[{','.join(_typed(argument) for argument in forwarded)}]"] if forwarded else []
        return kept


OF_A_RUN = Arguments(renamed={"model": "named"}, allow=True)
"""Of a command on a run folder: ``model=`` names one of the run's models."""


def open_data(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``data.<key>=`` and ``frozen_weights.<model>=``, as overrides that may add the key.

    Example:
        >>> open_data(["data=ucf101", "data.views=dense", "+data.index=false", "seed=1"])
        ['data=ucf101', '++data.views=dense', '++data.index=false', 'seed=1']
    """
    return [re.sub(r"^\+*(data\.|frozen_weights\.)", r"++\1", each) for each in arguments]


def _with_values(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Each argument; an option that takes the next word as its value together with it."""
    left = iter(arguments)
    for argument in left:
        value = next(left, None) if argument in _TAKE_A_VALUE else None
        yield [argument] if value is None else [argument, value]


def as_hydra(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command as Hydra takes them: :func:`open_data` and :func:`quote_paths`."""
    return quote_paths(open_data(arguments))


def takes_path(key: str) -> bool:
    """Whether a key, without plus signs, holds a path.

    Example:
        >>> takes_path("stages.first.data.root"), takes_path("losses.kd.unlabelled")
        (True, False)
    """
    return _is_of(key, READ + WRITTEN)


def _is_of(key: str, patterns: Sequence[str]) -> bool:
    key = re.sub(r"^stages\.[^.]+\.", "", key)
    return "@" not in key and not key.startswith("~") and any(fnmatchcase(key, pattern) for pattern in patterns)


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with paths in quotes, so that Hydra takes them literally; twice changes nothing more.

    A path may have any character but a line break; ``~/`` at its start is the home folder, ``${…}`` an interpolation
    unless there is a file of that very name. What is in quotes as a whole is left alone. ``[a,b]`` is a list where the
    key takes one. In a sweep (``-m``) a comma divides paths that are read, unless there is a file of the whole name;
    paths that are written are swept by ``choice(a,b)``.

    Args:
        arguments: as they were typed, without the command's name.

    Raises:
        ValueError: a path has a line break.

    Example:
        >>> quote_paths(["models.Teacher.pretrained=runs/x/best.ckpt#Teacher", "seed=1", "runs=[a,b=1]"])
        ["models.Teacher.pretrained='runs/x/best.ckpt#Teacher'", 'seed=1', "runs=['a','b=1']"]
        >>> quote_paths(["-m", "run=a,b (1)", "output=a,b", "lr=0.1,0.2"])
        ['-m', "run='a','b (1)'", "output='a,b'", 'lr=0.1,0.2']
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    return [_quoted(argument, sweep=sweep) for argument in arguments]


def _quoted(argument: str, *, sweep: bool) -> str:
    name, given, value = argument.partition("=")
    key = name.lstrip("+")
    if not given or not takes_path(key) or value in ("", "null"):
        return argument
    if lines := re.search(r"[\n\r\0]", value):
        raise ValueError(f"{key}: a path has no line breaks and null characters, got {lines[0]!r} in {value!r}")
    if sweep and re.fullmatch(r"(choice|glob|range|interval|shuffle|sort)\(.*\)", value) and not _exists(value):
        return argument
    if sweep and _is_of(key, READ) and not _exists(value) and len(items := _items(value)) > 1:
        return f"{name}={','.join(_path(item, key) for item in items)}"
    return f"{name}={_path(value, key)}"


def _path(value: str, key: str) -> str:
    """A path, or a list of them where the key takes one, in quotes."""
    if re.fullmatch(_QUOTED, value):
        return value
    if _is_of(key, _LISTS) and re.fullmatch(r"\[.*\]", value) and not _exists(value):
        return f"[{','.join(_path(item, '') for item in _items(value[1:-1]))}]"
    value = str(expand_home(value)) if re.match(r"~(/|$)", value) else value
    return _typed(value, _exists(value))


def _typed(text: str, is_name: bool = False) -> str:
    """A text in quotes; ``${`` is no interpolation where the text is the name of a file, or nothing closes it."""
    if "${" in text and (is_name or "}" not in text[text.rindex("${") :]):
        text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)
    return literal(text)


def _exists(value: str) -> bool:
    """Whether there is a file of this name, or of the one before ``#<model>``."""
    return any(os.path.lexists(expand_home(path)) for path in (value, value.rpartition("#")[0]) if path)


def _items(text: str) -> list[str]:
    """What commas divide, outside of quotes and brackets."""
    found = re.findall(rf"\s*((?:{_QUOTED})(?=\s*(?:,|$))|(?:\[[^\[\]]*\]|[^,])*)(?:,|$)", text)
    return [item.strip() for item in found if item.strip()]


def literal(text: str) -> str:
    """A text in quotes, as Hydra takes it without reading anything into it.

    Example:
        >>> literal("a (1), b.mp4"), literal("it's")
        ("'a (1), b.mp4'", "'it\\\\'s'")
    """
    # backslashes are escapes only before a quote, the closing one too: there they are doubled
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def shell_word(argument: str) -> str:
    """An argument as it is typed; quotes only where a shell would read something into it.

    Example:
        >>> print(shell_word("experiments=[baseline,kd]"), shell_word("overrides={kd: ['a=1']}"), shell_word("a b"))
        experiments=[baseline,kd] "overrides={kd: ['a=1']}" 'a b'
    """
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", argument):
        return argument
    return f'"{argument}"' if "'" in argument and not re.search(r'["$`\\!]', argument) else shlex.quote(argument)


def path_argument(key: str, path: str) -> str:
    """The override of a path, as it is pasted into a shell: it is read back as this very path.

    Example:
        >>> print(path_argument("run", "runs/a"), path_argument("run", "it's $1"))
        run=runs/a run='it'"'"'s $1'
    """
    typed = _typed(path, True) if path == "null" or re.match(r"['\"]|~(/|$)", path) or "${" in path else path
    return f"{key}={shell_word(typed)}"
