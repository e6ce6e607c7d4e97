"""`python -m lit_distill.convert`: PaddleVideo's weights and configs into this library's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_distill._version import __version__

_EXAMPLES = """\
Examples:
  python -m lit_distill.convert PPTSMv2_k400_16frames_dml.pdparams pptsmv2.safetensors --model pptsmv2
  python -m lit_distill.convert PPTSM_k400_dense_distill_r50.pdparams pptsm_resnet50.safetensors --model pptsm_resnet50
  python -m lit_distill.convert pptsm_lcnet_k400_16frames_uniform_dml_distillation.yaml conf/

Exit codes: 0 written, 1 an error (one line says which), 2 a wrong command line.
"""


def argument_parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_distill.convert",
        description="PaddleVideo's weights and configs into this library's.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a weights file (.pdparams, or any other kind), or a PaddleVideo .yaml")
    parser.add_argument("target", help="a .safetensors file; for a .yaml the folder of your configs, such as conf/")
    parser.add_argument("--model", help="the network in a weights file: pptsmv2, or pptsm_resnet18, 34, 50, 101, 152")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert what the command line names; 0, or 1 after one line on what is wrong."""
    parser = argument_parser()
    given = parser.parse_args(arguments)
    is_config = Path(given.source).suffix.lower() in (".yaml", ".yml")
    if not is_config and given.model is None:
        parser.error("weights need --model")
    from lit_distill.paddlevideo.convert import run

    return run(given.source, given.target, None if is_config else given.model)


if __name__ == "__main__":
    sys.exit(main())
