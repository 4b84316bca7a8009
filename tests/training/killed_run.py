"""A training run that kills itself with SIGKILL when it reports a step: `python killed_run.py SETTINGS.json STEP`."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from t2eval.training.config import TrainConfig
from t2eval.training.train import train_expert


def main() -> None:
    torch.set_num_threads(1)
    settings, step = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])

    def die(row: dict[str, Any]) -> None:
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train_expert(TrainConfig(**settings), progress=die)


if __name__ == "__main__":
    main()
