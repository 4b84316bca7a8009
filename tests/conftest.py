"""All tests: offline, seeded, one thread, a cache of their own."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import network

# Before any import of a Hugging Face library, which read these once.
_CACHE = tempfile.TemporaryDirectory(prefix="t2eval-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
    T2EVAL_CACHE=str(Path(_CACHE.name) / "t2eval"),
)
os.environ.pop("T2EVAL_DEBUG", None)

# A job in the background of a shell inherits that Ctrl-C is ignored, and would hand it on to the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    network.collected()


def pytest_configure(config: pytest.Config) -> None:
    from tests import weights

    config.pluginmanager.register(weights)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="Write tests/golden anew, instead of comparing with it.")


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent
