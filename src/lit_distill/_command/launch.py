"""One name for the run folder in all processes of a job, whoever starts them."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from datetime import datetime, timedelta

STARTED = "LIT_DISTILL_STARTED"  # conf/train.yaml names run folders by it, and by the time where it is not set
_KEY = "lit_distill/started"
_TIMEOUT = timedelta(minutes=5)


def share_start(environment: MutableMapping[str, str] = os.environ) -> None:
    """Agree on the name of the run folder before the config is composed, where each process would read its own clock.

    Under torchrun the first process to come writes its time into the agents' store, on whatever machine it is; a
    restart finds it there. Under SLURM the job and its step give the name, so that a job that is put back into the
    queue goes on in the same folder. Processes that Lightning starts itself inherit the variable.

    Args:
        environment: where the launcher's variables are, and ``LIT_DISTILL_STARTED`` is set; left alone if it is.

    Raises:
        ValueError: this torchrun offers no store; ``hydra.run.dir`` must name the folder then.
    """
    if environment.get(STARTED):
        return
    if "TORCHELASTIC_RUN_ID" in environment:
        environment[STARTED] = _from_torchrun(environment)
    elif "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        parts = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        environment[STARTED] = "_".join(["slurm", *(re.sub(r"\W", "-", part) for part in parts if part)])


def _from_torchrun(environment: MutableMapping[str, str]) -> str:
    mine = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    if environment.get("WORLD_SIZE") == "1":
        return mine
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError(
            "this torchrun offers its processes no store to agree on a run folder: name one by hydra.run.dir=<folder> "
            f"and set {STARTED}=1"
        )
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented there

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False, timeout=_TIMEOUT)
    return bytes(store.compare_set(_KEY, "", mine)).decode()
