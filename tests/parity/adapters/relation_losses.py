"""Adapters from golden cases to the library's relation losses, by family."""

from __future__ import annotations

from parity.harness import LossAdapter

ADAPTERS: dict[str, LossAdapter] = {}
