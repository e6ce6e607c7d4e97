"""What all commands share: where the configs are, and one clear line for what a user did wrong."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_distill._command.arguments import quote_paths
from lit_distill._command.launch import share_start
from lit_distill.data.decoding.decode import VideoError

_FULL_ERROR = "HYDRA_FULL_ERROR"


def conf_dir() -> Path:
    """The folder of the configs: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"lit_distill's configs are missing: expected {package / 'conf'}; install the package anew")


def user_error_text(error: BaseException) -> str | None:
    """The message for an error that a user can mend, without the frames that it came through; None for any other."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        close = difflib.get_close_matches(name, error.options, n=3)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        return f"there is no {group}={name}; {meant}All of {group}: {', '.join(error.options)}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        lines = str(error).split("\nConfig search path:")[0].splitlines()
        return " ".join(line.strip() for line in lines if line.strip())
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError, VideoError)):
        return str(error) or type(error).__name__
    return None


def exit_with(error: Exception, config_name: str) -> NoReturn:
    """End the command with one line for an error that a user can mend; raise any other."""
    text = user_error_text(error)
    if text is None:
        raise error
    print(f"error: {closest_key(text, config_name)} ({_FULL_ERROR}=1 shows the traceback)", file=sys.stderr)
    sys.exit(1)


def closest_key(text: str, config_name: str) -> str:
    """Hydra's message of a key that there is not, with the closest ones of the command's own config.

    Example:
        >>> closest_key("Could not override 'view'. To append to your config use +view=dense", "predict")
        "there is no 'view'; did you mean views?"
    """
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown is None:
        return text
    known: list[str] = []

    def walk(node: Any, path: str) -> None:
        for key, value in node.items():
            known.append(f"{path}{key}")
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")

    content = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{config_name}.yaml"))
    assert isinstance(content, dict)
    walk({key: value for key, value in content.items() if key not in ("defaults", "hydra")}, "")
    close = difflib.get_close_matches(unknown[1], known, n=1)
    return f"there is no {unknown[1]!r}; did you mean {close[0]}?" if close else text


def help_text(config_name: str) -> str:
    """What ``--help`` prints: the config's ``hydra.help.template``, its ``$APP_CONFIG_GROUPS`` filled in.

    It is read, not composed: a command whose config has to be chosen has a help without the choice too.
    """
    template = OmegaConf.select(OmegaConf.load(conf_dir() / f"{config_name}.yaml"), "hydra.help.template")
    if template is None:
        return f"python -m lit_distill.{config_name}: Hydra's --hydra-help tells its options, --cfg job its config"
    groups = []
    for folder in sorted({file.parent for file in conf_dir().glob("*/*.yaml")}):
        options = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        groups.append(textwrap.fill(f"{folder.name}: {options}", 118, initial_indent="  ", subsequent_indent="    "))
    return str(template).replace("$APP_CONFIG_GROUPS", "\n".join(groups)).rstrip()


def quiet_lightning() -> None:
    """Leave out what Lightning says of itself at every start, and warnings of what is meant to be so here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the frozen teacher
        r"The number of training batches .* is smaller than the logging interval",  # an epoch's end is logged anyway
        r".*LeafSpec.* is deprecated",  # Lightning's own use of torch
        r"Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its folder
    ):
        warnings.filterwarnings("ignore", message=message)


def take_allow(arguments: list[str]) -> list[str]:
    """Replace every ``--allow <package>`` by one override of ``allow``, the packages that a received config may name.

    Args:
        arguments: of the command line.

    Returns:
        The arguments as Hydra takes them.

    Raises:
        ValueError: an ``--allow`` without a package.

    Example:
        >>> take_allow(["run=runs/x", "--allow", "my_package", "--allow=other.Model"])
        ['run=runs/x', '++allow=[my_package,other.Model]']
    """
    rest: list[str] = []
    allowed: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--allow" or argument.startswith("--allow="):
            given = argument.partition("=")[2] if "=" in argument else next(left, "")
            if not re.fullmatch(r"[\w.]+", given):
                raise ValueError(f"--allow expects a package, such as --allow my_package, came {given!r}")
            allowed.append(given)
        else:
            rest.append(argument)
    return [*rest, f"++allow=[{','.join(allowed)}]"] if allowed else rest


def typed_overrides() -> list[str]:
    """The overrides of the running command as they were typed: an interpolation within one is not resolved."""
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(override) for override in cast(list[Any], overrides)]


def command(config_name: str, *, receives: bool = False) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn a function of the composed config into a command whose user errors are one line and exit code 1.

    ``HYDRA_FULL_ERROR=1`` shows the traceback instead.

    Args:
        config_name: of the config that is composed.
        receives: whether it reads configs of others, and so takes ``--allow``, as ``config.allow``.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> Any:
            try:
                return function(config)
            except Exception as error:
                exit_with(error, config_name)

        def main() -> None:
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_text(config_name))
                return
            wants_traceback = os.environ.get(_FULL_ERROR) == "1"
            task = function if wants_traceback else guarded
            # Hydra would print its own abridged stack and exit; with this it hands the error over.
            os.environ[_FULL_ERROR] = "1"
            try:
                share_start()
                sys.argv[1:] = quote_paths(sys.argv[1:])
                if receives:
                    sys.argv[1:] = take_allow(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(task)()
            except Exception as error:
                if wants_traceback:
                    raise
                exit_with(error, config_name)
            finally:
                if not wants_traceback:
                    del os.environ[_FULL_ERROR]

        return main

    return decorate
