"""What all commands share: where the configs are, and one clear line for what a user did wrong."""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lit_distill.data.decode import VideoError

_FULL_ERROR = "HYDRA_FULL_ERROR"


def conf_dir() -> Path:
    """The folder of the configs: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent
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


def exit_with(error: Exception) -> NoReturn:
    """End the command with one line for an error that a user can mend; raise any other."""
    text = user_error_text(error)
    if text is None:
        raise error
    print(f"error: {text} ({_FULL_ERROR}=1 shows the traceback)", file=sys.stderr)
    sys.exit(1)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn a function of the composed config into a command whose user errors are one line and exit code 1.

    ``HYDRA_FULL_ERROR=1`` shows the traceback instead.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> Any:
            try:
                return function(config)
            except Exception as error:
                exit_with(error)

        def main() -> None:
            wants_traceback = os.environ.get(_FULL_ERROR) == "1"
            task = function if wants_traceback else guarded
            # Hydra would print its own abridged stack and exit; with this it hands the error over.
            os.environ[_FULL_ERROR] = "1"
            try:
                hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(task)()
            except Exception as error:
                if wants_traceback:
                    raise
                exit_with(error)
            finally:
                if not wants_traceback:
                    del os.environ[_FULL_ERROR]

        return main

    return decorate
