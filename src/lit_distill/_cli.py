"""What all commands share: where the configs are, and one clear line for what a user did wrong."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

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
    if isinstance(error, (HydraException, OmegaConfBaseException, ValueError, OSError, ModuleNotFoundError)):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    return None


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn a function of the composed config into a command whose user errors are one line and exit code 1.

    ``HYDRA_FULL_ERROR=1`` shows the traceback instead.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def main() -> None:
            wants_traceback = os.environ.get(_FULL_ERROR) == "1"
            # Hydra would print its own abridged stack and exit; with this it hands the error over.
            os.environ[_FULL_ERROR] = "1"
            try:
                hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(function)()
            except Exception as error:
                text = user_error_text(error)
                if wants_traceback or text is None:
                    raise
                print(f"error: {text}", file=sys.stderr)
                print(f"       (the traceback: {_FULL_ERROR}=1)", file=sys.stderr)
                sys.exit(1)
            finally:
                if not wants_traceback:
                    os.environ.pop(_FULL_ERROR, None)

        return main

    return decorate
