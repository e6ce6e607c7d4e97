"""What a run must not leave in its files: keys and passwords of services, by the names that they are given."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "<redacted>"
_NAMES = r"(?:(?:api|access|account|private|secret|signing)_?key|token|secret|passw(?:or)?d|passphrase|credential)s?"
_NAME = re.compile(rf"(?:^|[\W_]){_NAMES}$", re.IGNORECASE)
_TYPED = re.compile(rf"((?:^|[\s'\"{{,._+~]){_NAMES}['\"]?\s*[=:]\s*)[^\s,}}\]]+", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^},]*)")


def is_secret(name: str) -> bool:
    """Whether a key of a config, or a variable of the environment, names a secret.

    Example:
        >>> [is_secret(name) for name in ("WANDB_API_KEY", "logger.wandb.token", "tokens_per_clip", "key")]
        [True, True, False, False]
    """
    return _NAME.search(name.strip()) is not None


def takes_secret(text: str) -> bool:
    """Whether an interpolation takes a secret from the environment: it is written as it stands."""
    return any(is_secret(name) for name in _ENVIRONMENT.findall(text))


def redacted(tree: Any, name: str = "") -> Any:
    """A copy of plain data without its secrets; what an interpolation only points to stays.

    Example:
        >>> redacted({"api_key": "abc", "token": "${oc.env:MY_TOKEN}", "root": "s3://me:abc@bucket"})
        {'api_key': '<redacted>', 'token': '${oc.env:MY_TOKEN}', 'root': 's3://<redacted>@bucket'}
    """
    if isinstance(tree, dict):
        return {key: redacted(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redacted(value, name) for value in tree]
    if not isinstance(tree, str):
        return tree
    if is_secret(name) and tree and not re.fullmatch(r"\$\{[^{}]*\}", tree):
        return REDACTED
    return redacted_text(tree)


def redacted_text(text: str) -> str:
    """A command or another text without the secrets that it gives.

    Example:
        >>> redacted_text("train +logger.wandb.api_key=abc data.root=s3://me:abc@bucket/x seed=1")
        'train +logger.wandb.api_key=<redacted> data.root=s3://<redacted>@bucket/x seed=1'
    """
    return _LOGIN.sub(f"{REDACTED}@", _TYPED.sub(lambda match: f"{match[1]}{REDACTED}", text))
