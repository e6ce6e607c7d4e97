"""`python -m lit_distill.benchmark run=<folder> input=clip.mp4`: latency of decoding, preprocessing and the network."""

from __future__ import annotations

from lit_distill._command.arguments import OF_A_RUN
from lit_distill._command.command import Command

main = Command("benchmark", "lit_distill.inference.benchmark:run", OF_A_RUN)

if __name__ == "__main__":
    main()
