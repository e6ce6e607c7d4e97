"""What a run must not leave in its files: keys and passwords of services, by their names, their forms and their values.

Values of the environment's secrets are left out wherever they stand, so that a log of another key does not hold them.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any
from urllib.parse import quote

REDACTED = "<redacted>"
_ANYWHERE = (
    r"passw(?:or)?d|passphrase|secret(?!ar)|credential|authorization|webhook|connection[_-]?string|"
    r"(?:api|access|account|private|signing|encryption|subscription|licen[cs]e|ssh)[_-]?key"
)
_AT_THE_END = (
    r"tokens?|(?:^|(?<=[\W_])|o)auth|cookies?|signature|bearer|jwt|pwd|(?:^|(?<=[\W_]))(?:sig|pass|pw|pat|dsn|otp)"
)
# Without a bound a text of one long word, such as the name of a class, would take the square of its length.
_NAMES = rf"(?:[\w.+~-]{{0,200}}(?:{_ANYWHERE})[\w-]{{0,200}}|[\w.+~-]{{0,200}}(?:{_AT_THE_END}))"
_NAME = re.compile(_NAMES, re.IGNORECASE)
_HIDDEN = r"""\\+"[^"]*"|\\+'[^']*'|'[^']*'|"[^"]*"|\$\{[^{}]*\}|(?:(?:bearer|basic)\s+)?[^\s,;&}\]'"]+"""
_TYPED = re.compile(rf"""(?<![\w.+~-])({_NAMES}\\*['"]?\s*(?:[=:]|%3D)\s*|--{_NAMES}\s+)({_HIDDEN})""", re.IGNORECASE)
_QUOTED = re.compile(rf"""(?P<quote>['"])({_NAMES}[=:])(?!\$\{{)((?:(?!(?P=quote)).)+)""", re.IGNORECASE)
# Up to the last @ where a password may hold some; host:8080/a@b is a port.
_LOGIN = re.compile(r"(?<=://)(?:[^/@\s:]{0,200}:(?!\d+/)[^\s'\",]{0,1000}@|[^/@\s]{1,1000}@)")
# Of services whose keys say what they are.
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|"
    r"sk-[\w-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,999}\.[\w-]{8,}\.[\w-]*|wandb_v\d_\w{20,})|"
    r"(?<=hooks\.slack\.com/services/)[\w/]+|(?<=/api/webhooks/)[\w/-]+|(?<=/bot)\d+:[\w-]{20,}|"
    r"(?<=\bBearer )[\w.~+/-]{8,}|(?<=[?&]key=)[^&\s'\",]+|(?<=[?&]code=)[^&\s'\",]+|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*"
)
_NO_SECRET = re.compile(
    r"""['"]?(?:[-+]?\d{1,5}(?:\.\d+)?|true|false|null|none|\?\?\?|\$\{[^{}]*\})?['"]?""", re.IGNORECASE
)
# Names that most configs have for something else: of a secret where the value looks as if it was drawn by chance.
_DRAWN = (
    r"(?:(?=[\w+/=-]{0,200}\d)(?=[\w+/=-]{0,200}[a-z])(?=[\w+/=-]{0,200}[A-Z])[\w+/=-]{20,}|"
    r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12,})"
)
_PLAIN = re.compile(
    rf"""(?<![\w-])((?i:key|session)\\*['"]?\s*[=:]\s*\\*['"]?){_DRAWN}|((?i:\bpin)\s*[=:]\s*)\d{{4,12}}\b"""
)
_LONG_NUMBER = 100_000  # from which on one is no size or switch
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^},]*)")
# A key of a config may be that of a mapping; a variable of the environment is none.
_VARIABLE = re.compile(rf"{_NAMES}|\w*KEY", re.IGNORECASE)
_FOLDERS = ("PWD", "OLDPWD")  # the shell's, not passwords
_SHORTEST = 8  # characters of a value of the environment that is looked for


def is_secret(name: str) -> bool:
    """Whether a key of a config, or a variable of the environment, names a secret.

    Example:
        >>> [is_secret(name) for name in ("WANDB_API_KEY", "logger.x.authToken", "tokens_per_clip", "key")]
        [True, True, False, False]
    """
    return _NAME.fullmatch(name.strip()) is not None


def takes_secret(text: str) -> bool:
    """Whether an interpolation takes a secret from the environment: it is written as it stands."""
    return any(is_secret(name) for name in _ENVIRONMENT.findall(text))


def redacted(tree: Any, name: str = "") -> Any:
    """A copy of plain data without its secrets; what an interpolation only points to stays.

    Example:
        >>> redacted({"api_key": "abc", "token": "${oc.env:MY_TOKEN}", "root": "s3://me:abc@bucket"})
        {'api_key': '<redacted>', 'token': '${oc.env:MY_TOKEN}', 'root': 's3://<redacted>@bucket'}
    """
    return _redacted(tree, name, _values())


def redacted_text(text: str) -> str:
    """A command or another text without the secrets that it gives.

    Example:
        >>> redacted_text("train +logger.wandb.api_key=abc data.root=s3://me:abc@bucket/x seed=1")
        'train +logger.wandb.api_key=<redacted> data.root=s3://<redacted>@bucket/x seed=1'
        >>> redacted_text("train data.root='https://host/x?sig=abc&v=1' model.reg_tokens=4")
        "train data.root='https://host/x?sig=<redacted>&v=1' model.reg_tokens=4"
    """
    return _without(text, _values())


def _values() -> list[str]:
    """Of the environment's secrets, also as URLs and JSON write them, the longest first: one may hold another."""
    found = [
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and _VARIABLE.fullmatch(name)
        and name not in _FOLDERS
        and not (os.path.isabs(value) and os.path.exists(value))  # a file with a key: its place is none
    ]
    written = {
        form
        for value in found
        for form in (value, quote(value, safe="", errors="surrogateescape"), json.dumps(value)[1:-1])
    }
    return sorted(written, key=len, reverse=True)


def _redacted(tree: Any, name: str, values: list[str]) -> Any:
    if isinstance(tree, dict):
        return {_without(key, values) if isinstance(key, str) else key: _redacted(value, str(key), values)
                for key, value in tree.items()}  # fmt: skip
    if isinstance(tree, (list, tuple)):
        return [_redacted(value, name, values) for value in tree]
    if isinstance(tree, int) and not isinstance(tree, bool):
        is_count = tree < _LONG_NUMBER or name.lower().endswith("tokens")
        return REDACTED if _is_plain(name, tree) or (is_secret(name) and not is_count) else tree
    if not isinstance(tree, str):
        return tree
    if (is_secret(name) and tree and not re.fullmatch(r"\$\{[^{}]*\}", tree)) or _is_plain(name, tree):
        return REDACTED
    return _without(tree, values)


def _is_plain(name: str, value: str | int) -> bool:
    return _PLAIN.fullmatch(f"{name}={value}") is not None


def _without(text: str, values: list[str]) -> str:
    for value in values:
        text = text.replace(value, REDACTED)
    text = _FORMS.sub(REDACTED, _LOGIN.sub(f"{REDACTED}@", text))
    text = _QUOTED.sub(
        lambda found: found[0] if _NO_SECRET.fullmatch(found[3]) else f"{found[1]}{found[2]}{REDACTED}", text
    )
    text = _PLAIN.sub(lambda found: f"{found[1] or found[2]}{REDACTED}", text)
    return _TYPED.sub(_hidden, text)


def _hidden(found: re.Match[str]) -> str:
    return found[0] if _NO_SECRET.fullmatch(found[2]) else f"{found[1]}{REDACTED}"
