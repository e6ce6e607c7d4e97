"""How many cores this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Those that the scheduler gives it, where the system says so; ``os.process_cpu_count`` from Python 3.13 on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
