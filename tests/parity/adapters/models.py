"""Adapters from golden cases to the library's networks, by kind."""

from __future__ import annotations

from parity.harness import CaseAdapter

ADAPTERS: dict[str, CaseAdapter] = {}
