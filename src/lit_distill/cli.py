"""`lit-distill <command> …` is `python -m lit_distill.<command> …`."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Sequence

from lit_distill._version import __version__

COMMANDS = {
    "train": "train an experiment: a method, models and data",
    "test": "accuracy, confusions and calibration of what a run trained",
    "predict": "classify videos or images with it",
    "select": "the best of a pool without labels, for each class, by a trained teacher",
    "export": "the student alone as ONNX, torch.export or safetensors, verified",
    "benchmark": "its latency, split into decode, preprocess and network",
    "doctor": "look at an experiment before it is trained",
    "compare": "strategies with paired seeds: which is better, by how much, is it luck",
    "search": "the best settings of an experiment by Optuna, pruned by validation",
    "report": "what runs learned and where they differ, as one page",
    "index": "look through the videos of a data set once, and find bad ones",
    "pack": "videos of a data set into tar shards",
    "convert": "PaddleVideo's weights and configs into this library's",
}
"""Each command and what it does."""


def help_text() -> str:
    """What ``lit-distill --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items())
    return (
        "Knowledge distillation: train students, test them, put them to work.\n\n"
        "  lit-distill <command> [arguments]\n"
        "  lit-distill <command> --help\n\n"
        f"{lines}\n\n"
        "Each is python -m lit_distill.<command> too.\n\n"
        'eval "$(lit-distill completion bash)" completes commands, experiments, groups and keys (bash, zsh, fish).'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command as ``python -m`` would.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        An exit code, where the command did not end the process itself.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if given[0] == "completion":
        return _complete(given[1:])
    name = given[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=2)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        print(f"error: no command {name!r}; {meant}There are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # As the main module of this process: processes that it starts (DDP, workers) are python -m lit_distill.<name> too.
    sys.argv[1:] = given[1:]
    runpy.run_module(f"lit_distill.{name}", run_name="__main__", alter_sys=True)
    return 0


def _complete(given: Sequence[str]) -> int:
    """Print the script of a shell, or what the words after ``--`` may be completed to."""
    from lit_distill._command.completion import SCRIPTS, candidates

    if given[:1] == ["--"]:
        print("\n".join(candidates(given[1:], COMMANDS)))
    elif len(given) == 1 and given[0] in SCRIPTS:
        print(SCRIPTS[given[0]])
    else:
        print(f"error: completion expects a shell, {', '.join(SCRIPTS)}, got {' '.join(given)!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
