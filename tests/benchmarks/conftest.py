"""The scripts of benchmarks/ are no package: they are found as when they are run."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"

sys.path.append(str(FOLDER))
