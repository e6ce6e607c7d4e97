"""`python -m lit_distill.compare experiments=[baseline,kd,…] seeds=5 data=…`: does it help, by how much, is it luck?"""

from __future__ import annotations

from lit_distill._command.arguments import Arguments
from lit_distill._command.command import Command

main = Command(
    "compare",
    "lit_distill.comparison.compare:main",
    Arguments(
        forwarded="train",
        open_keys=("overrides", "variants"),
        options={"--config-dir": "config_dir", "-cd": "config_dir"},
        # Hydra would take it for the group of train
        replaced={"teacher=null": "teacher.experiment=null"},
        refused={
            "teacher=": "the teacher is set by teacher.model=, teacher.epochs=, … or teacher=null",
            r"(-m|--multirun)$": "compare is a sweep itself: give experiments=[…] and seeds=…",
            r"[+~]*hydra\.run\.dir=": "hydra.run.dir is what compare sets itself, for each run: give folder=…",
        },
        typed="command",
    ),
)

if __name__ == "__main__":
    main()
