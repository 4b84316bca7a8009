"""One training run by itself, as torchrun starts it in each process: `python -m tests.training.a_run SETTINGS.json`."""

import json
import sys
from pathlib import Path

import torch

from t2eval.training.config import TrainConfig
from t2eval.training.train import train_expert

if __name__ == "__main__":
    torch.set_num_threads(1)
    train_expert(TrainConfig(**json.loads(Path(sys.argv[1]).read_text())), progress=False)
