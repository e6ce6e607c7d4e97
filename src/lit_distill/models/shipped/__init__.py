"""Pretrained weights that the package ships, by name: ``shipped:digits_pptsmv2``, made by ``make pretrained``.

Each is a ``.safetensors`` file with a card beside it: the command, data and versions that made it, its accuracy, and
the SHA-256 that is checked whenever it is read.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Final

from lit_distill.untrusted.budgets import WEIGHTS_BYTES
from lit_distill.untrusted.opening import read_untrusted
from lit_distill.untrusted.plain import read_plain

SCHEME: Final = "shipped:"
FOLDER: Final = Path(__file__).parent


def is_shipped(name: str | os.PathLike[str]) -> bool:
    """Whether a path names weights of the package.

    Example:
        >>> is_shipped("shipped:digits_pptsmv2"), is_shipped("runs/student.safetensors")
        (True, False)
    """
    return os.fspath(name).startswith(SCHEME)


def shipped_names() -> list[str]:
    """The names of all weights that the package ships.

    Example:
        >>> shipped_names()
        ['shipped:digits_pptsm_resnet18', 'shipped:digits_pptsmv2']
    """
    return sorted(f"{SCHEME}{card.stem}" for card in FOLDER.glob("*.json"))


def read_card(name: str) -> dict[str, Any]:
    """The card of weights of the package.

    Raises:
        ValueError: the package ships no weights of this name.

    Example:
        >>> read_card("shipped:digits_pptsmv2")["model"]["num_classes"]
        28
    """
    names = shipped_names()
    if name not in names:
        raise ValueError(f"lit_distill ships no weights {name!r:.80}; it ships {', '.join(names)}")
    card = FOLDER / f"{name.removeprefix(SCHEME)}.json"
    content: dict[str, Any] = read_plain(card)
    return content


def shipped_file(name: str) -> Path:
    """The file of weights of the package.

    Raises:
        ValueError: the package ships no weights of this name, or the file is not the one of its card.

    Example:
        >>> shipped_file("shipped:digits_pptsmv2").name
        'digits_pptsmv2.safetensors'
    """
    wanted = read_card(name)["sha256"]
    file = FOLDER / f"{name.removeprefix(SCHEME)}.safetensors"
    found = hashlib.sha256(read_untrusted(file, what="weights", limit=WEIGHTS_BYTES)).hexdigest()
    if found != wanted:
        raise ValueError(
            f"{file} is not the file that its card describes: its sha256 is {found[:12]}…, the card's {wanted[:12]}…: "
            "install lit-distill again"
        )
    return file
