"""A benchmark that kills itself with SIGKILL in the middle of its second training: `python killed_training.py FILE OUTPUT`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

import t2eval.training.sweep
from t2eval.bench.execute import run
from t2eval.bench.plan import load_plan
from t2eval.training.progress import Handed, Show


def main() -> None:
    torch.set_num_threads(1)

    def show(progress: Any, title: str) -> Show:
        def report(row: dict[str, Any]) -> None:
            if title.startswith("lora") and row["step"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        return Handed(report)

    t2eval.training.sweep.show = show
    run(load_plan(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    main()
