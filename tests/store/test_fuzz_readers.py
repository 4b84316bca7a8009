"""The proof that the fuzzer sees what it looks for; a sample of its cases is in `test_fuzz_covers.py`."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.store.fuzz_readers import damage


def _fuzzed(root: Path, program: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


_BROKEN = """
import json, os, pathlib
from tests.store import fuzz_readers as fuzz

def reader(act):
    def fill(folder):
        (folder / "a.json").write_text("{}")
        first = (folder / "a.json").read_bytes()
        return lambda: (folder / "a.json").is_file() and (folder / "a.json").read_bytes() != first and act(folder)
    return fill

fuzz.SECONDS = 0.5
table = {"raises": reader(lambda folder: {}["x"]), "writes": reader(lambda folder: (folder.parent / "outside").write_text("")),
         "fills": reader(lambda folder: bytes(2**32)), "hangs": reader(lambda folder: [None for _ in iter(int, 1)])}
fuzz.seeds = lambda: table
print(json.dumps(fuzz.run(24)))
"""


def test_what_a_reader_does_wrong_is_seen(root: Path) -> None:
    failures = _fuzzed(root, _BROKEN)["failures"]
    assert isinstance(failures, dict)
    assert {name.split(":")[0] for name in failures} == {"raises", "writes", "fills", "hangs"}
    assert {"raises: KeyError", "fills: memory", "hangs: hangs"} <= failures.keys()


def test_damage_never_reaches_through_a_link(tmp_path: Path) -> None:
    """Else a run as root would damage the files of the machine that it runs on."""
    outside, folder = tmp_path / "outside", tmp_path / "case"
    outside.write_text("kept")
    folder.mkdir()
    for seed in range(60):
        (folder / "ours.json").write_text("{}")
        (folder / "link.json").symlink_to(outside)
        damage(folder, random.Random(seed))
        damage(folder, random.Random(-seed))
        assert outside.read_text() == "kept"
        shutil.rmtree(folder)
        folder.mkdir()
