"""No network call where none is needed, and no telemetry: the embedded base is loaded, evaluated and reported with every socket refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        print("CALLED", event, arguments[1:], file=sys.stderr, flush=True)
        raise OSError("no network here")

sys.addaudithook(refuse)
from t2eval.bench.plan import make_plan, parse_config
from t2eval.bench.rows import append
from t2eval.bench.worker import Worker
from t2eval.leaderboard.report import leaderboard
folder = Path(sys.argv[1])
folder.mkdir()
plan = make_plan(parse_config({"tasks": ["embedded_math_seen"], "methods": ["base"], "limit": 1, "seeds": [0]}, "here"))
worker = Worker(plan.config, folder)
worker.open()
for cell in plan.cells:
    row = worker.run(cell)
    assert row.status == "ok", row.error
    append(folder, row)
table = leaderboard(folder).to_markdown()
assert "embedded_math_seen" in table, table
print("done")
"""


def test_the_embedded_base_needs_no_network(tmp_path: Path) -> None:
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRANSFORMERS_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in offline}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "bench")], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "CALLED" not in done.stderr, done.stderr[-3000:]
