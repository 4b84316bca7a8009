from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from t2eval.errors import T2Error
from t2eval.store.lock import locked

_HOLDER = (
    "import sys, time\nfrom t2eval.store.lock import locked\n"
    "with locked(sys.argv[1], 'training'):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def test_one_process_a_folder_until_it_ends_however_it_ends(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(T2Error, match=f"Another training is at work in {folder}. Wait for it"), locked(folder, "training"):
            pass
        (folder / ".x.0.unfinished").write_text("half")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(folder, "training"):
            assert os.listdir(folder) == [".lock"], "what the killed one left unfinished is gone"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert os.listdir(folder) == [], "no lock is left"


def test_two_in_one_process_exclude_each_other_too(tmp_path):
    with locked(tmp_path, "benchmark"):
        with pytest.raises(T2Error, match="Another benchmark"), locked(tmp_path, "benchmark"):
            pass
        with pytest.raises(T2Error, match="Another benchmark"), locked(tmp_path, "benchmark"):
            pass


def test_many_takers_are_never_in_it_at_once(tmp_path):
    script = (
        "import os, sys\nfrom t2eval.errors import T2Error\nfrom t2eval.store.lock import locked\nwon = 0\n"
        "while won < 30:\n    try:\n        with locked(sys.argv[1], 'run'):\n"
        "            os.close(os.open(sys.argv[1] + '/inside', os.O_CREAT | os.O_EXCL))\n            os.unlink(sys.argv[1] + '/inside')\n"
        "            won += 1\n    except T2Error:\n        pass\n"
    )
    takers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(4)]
    assert [taker.wait(60) for taker in takers] == [0] * 4


@pytest.mark.parametrize("way", ["demo", "paper"])
def test_demo_and_paper_refuse_a_folder_that_is_in_use_before_anything_is_loaded(tmp_path, way):
    from t2eval.leaderboard.demo import run_demo
    from t2eval.paper.lab import Lab
    from t2eval.paper.presets import preset

    with locked(tmp_path, "session"), pytest.raises(T2Error, match=rf"Another .*{way}.* is at work in {tmp_path}"):
        run_demo(tmp_path) if way == "demo" else Lab(tmp_path, preset(quick=True))
    assert os.listdir(tmp_path) == []
