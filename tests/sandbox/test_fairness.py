"""Sandbox: right programs are judged right, whatever else the machine does and whatever ran before."""
# ruff: noqa: E501 (programs in one line)

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from t2eval import sandbox
from t2eval.errors import UsageError
from t2eval.sandbox import available, isolation, jail, run, run_program, run_programs
from tests.sandbox.test_attack_set import programs

SPIN = "while True: pass"
WORK = "import time\nwhile time.process_time() < {}: pass"


@pytest.fixture
def busy() -> Iterator[None]:
    """Six processes a core that do nothing but work."""
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(6 * len(os.sched_getaffinity(0)))]
    yield
    for process in spinning:
        process.kill()
        process.wait()


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e9])
def test_a_time_limit_is_a_time(timeout: float) -> None:
    with pytest.raises(UsageError, match="timeout above 0"):
        run_program("pass", timeout=timeout)


def test_waiting_for_a_core_does_not_count(kind: str, busy: None) -> None:
    """Half a second of work under a limit of one, on a machine that gives each a seventh of a core."""
    begin = time.monotonic()
    verdicts = run_programs([WORK.format(0.5)] * 4, timeout=1.0, workers=4)
    assert [verdict.status for verdict in verdicts] == ["passed"] * 4
    assert time.monotonic() - begin > 1.0, "the machine was not busy, and this test says nothing"


def test_working_and_doing_nothing_end_at_the_limit(kind: str) -> None:
    for source in (
        SPIN,
        "import time; time.sleep(60)",
        "import time\nwhile True: time.sleep(0.01)",
        "import select; select.select([], [], [])",
    ):
        begin = time.monotonic()
        verdict = run_program(source, timeout=0.5)
        assert (verdict.status, verdict.detail) == ("timeout", "still running after 0.5 s")
        assert time.monotonic() - begin < 0.5 * 10 + 5, source


def test_a_program_that_got_no_core_runs_again_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jail that says so once, as one on a machine at its end would."""
    receive, sent = jail.Supervisor.receive, []

    def starving(supervisor: jail.Supervisor, seconds: float = 30.0) -> dict[str, object] | None:
        answer = receive(supervisor, seconds)
        if answer and "status" in answer and supervisor.job == 1:
            sent.append(sum(key.data is not None for key in loops[0].selector.get_map().values()))
            if len(sent) == 1:
                return {**answer, "status": "timeout", "detail": "still running after 5 s", "starved": True}
        return answer

    loops: list[run._Loop] = []
    initial = run._Loop.__init__

    def noted(loop: run._Loop, *arguments: object) -> None:
        loops.append(loop)
        initial(loop, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run._Loop, "__init__", noted)
    monkeypatch.setattr(jail.Supervisor, "receive", starving)
    assert [verdict.passed for verdict in run_programs(["pass"] * 6, workers=3)] == [True] * 6
    assert len(sent) == 2 and sent[1] == 1, "the second time nothing else ran"


def test_a_verdict_that_the_machine_lost_is_asked_for_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receive, lost = jail.Supervisor.receive, []

    def losing(supervisor: jail.Supervisor, seconds: float = 30.0) -> dict[str, object] | None:
        answer = receive(supervisor, seconds)
        if answer and "status" in answer and lost.count(supervisor.job) < 2:
            lost.append(supervisor.job)
            return None
        return answer

    run_program("pass")
    monkeypatch.setattr(jail.Supervisor, "receive", losing)
    sources = ["assert True", "assert False", "pass", "1/0"]
    assert [verdict.status for verdict in run_programs(sources, workers=2)] == ["passed", "failed", "passed", "error"]
    assert sorted(lost) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_where_no_more_jails_can_be_started_those_at_work_go_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without processes to spare: 30 honest verdicts are not lost over it."""
    sandbox.close()
    borrow, tries = run.borrow, []

    def scarce(wanted: isolation.Kind) -> jail.Supervisor:
        tries.append(wanted)
        if len(tries) in (1, 3, 4):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return borrow(wanted)

    monkeypatch.setattr(run, "borrow", scarce)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert all(verdict.passed for verdict in run_programs(["pass"] * 30, workers=4))
    assert len(tries) == 3


def test_an_interrupted_run_leaves_no_answer_for_the_next_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = jail.Supervisor.receive

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(jail.Supervisor, "receive", interrupted)
            run_programs(["assert False"] * 3, workers=2)
        assert [verdict.passed for verdict in run_programs(["pass", "assert False", "pass"], workers=2)] == [True, False, True]
    assert jail.Supervisor.receive is receive


# ---------------------------------------------------------------------- right programs
RIGHT = {
    "a coding comment is a comment": "# -*- coding: latin-1 -*-\nassert len('é') == 1 and ord('é') == 233",
    "a coding comment of no encoding": "# -*- coding: no-such-encoding -*-\nassert True",
    "a byte order mark": "\ufeffassert True",
    "windows' line ends": "def f():\r\n    return '''a\r\nb'''\r\nassert f() == 'a\\nb'",
    "a separator of lines in a text": "assert len('a\u2028b') == 3",
    "it closes its standard output": "import sys, os\nsys.stdout.close()\nos.close(1)\nos.close(2)\nassert True",
    "it prints into a closed output": "import os\nos.close(1)\ntry:\n    print('x', flush=True)\nexcept OSError:\n    pass",
    "some threads": "import threading\nfound = []\nown = [threading.Thread(target=found.append, args=(n,)) for n in range(40)]\n"
    "[t.start() for t in own]\n[t.join() for t in own]\nassert sorted(found) == list(range(40))",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as pool:\n"
    "    assert sum(pool.map(abs, range(-100, 0))) == 5050",
}
RIGHT_WITH_FILES = {
    "it copies a file": "import shutil, os\nopen('a', 'w').write('x' * 100_000)\nshutil.copy('a', 'b')\nshutil.copy2('a', 'c')\n"
    "shutil.copyfile('a', 'd')\nassert [len(open(n).read()) for n in 'bcd'] == [100_000] * 3",
    "it copies a folder": "import shutil, os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nshutil.copytree('a', 'd')\n"
    "assert open('d/b/c').read() == 'x'\nshutil.move('d', 'e')\nshutil.rmtree('a')\nassert os.listdir('.') == ['e']",
    "it touches a file": "import pathlib\npathlib.Path('a').touch()\npathlib.Path('a').chmod(0o600)\npathlib.Path('a').touch()",
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes(kind: str, name: str) -> None:
    verdict = run_program(RIGHT[name])
    assert verdict.passed, verdict


@pytest.mark.parametrize("name", RIGHT_WITH_FILES)
def test_a_right_program_with_files_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isolation.VARIABLE, "bubblewrap")
    if available().kind is None:
        pytest.skip("bubblewrap is not here")
    verdict = run_program(RIGHT_WITH_FILES[name])
    assert verdict.passed, verdict


def test_time_zones_have_their_data_where_the_machine_has_it(kind: str) -> None:
    if not os.path.exists("/usr/share/zoneinfo/Europe/Paris"):
        pytest.skip("this machine has no time zones")
    source = (
        "from datetime import datetime\nfrom zoneinfo import ZoneInfo\nsummer = datetime(2024, 7, 1, tzinfo=ZoneInfo('Europe/Paris'))\n"
    )
    assert run_program(source + "assert summer.utcoffset().seconds == 7200").passed


def test_a_harness_without_standard_output_gets_its_verdicts() -> None:
    script = (
        "import os, sys\nfor number in (0, 1):\n    os.close(number)\nfrom t2eval.sandbox import run_programs\n"
        "found = [v.status for v in run_programs(['pass', 'assert False', '1/0'])]\n"
        "os.write(2, repr(found).encode())\nos._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.stderr == "['passed', 'failed', 'error']"


# ---------------------------------------------------------------------- one program and the next
def test_a_program_finds_nothing_of_the_one_before_it(kind: str) -> None:
    """Its source, tests included, and its last words: looked for in all of the memory that its process has a copy of."""
    secret = "SECRET-of-" + os.urandom(8).hex()
    supervisor = run.borrow(available().kind)  # type: ignore[arg-type]
    ranges: list[tuple[int, int]] = []
    try:
        for source in (f"x = '{secret}'\n" + f"# {secret}\n" * 2000, f"raise ValueError('{secret}' * 5)", f"assert False, '{secret}'"):
            supervisor.send(0, source.encode(), 5.0)
            assert supervisor.receive() is not None
        for process in _family(supervisor.process.pid):
            try:
                with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
                    for line in maps:
                        where, rights, *_ = line.split()
                        start, end = (int(part, 16) for part in where.split("-"))
                        if "r" not in rights or "[v" in line:
                            continue
                        ranges.append((start, end))
                        memory.seek(start)
                        try:
                            held = memory.read(end - start)
                        except OSError:
                            continue
                        assert secret.encode() not in held, line
            except PermissionError:
                pytest.skip("only root may look into a supervisor")
    finally:
        supervisor.kill()
    assert ranges


def _family(pid: int) -> list[int]:
    """A process and those below it."""
    found = [pid]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found += _family(int(entry))
    return found


def test_programs_cannot_lock_each_other_out(kind: str) -> None:
    source = "import fcntl, os\nfile = open(os.__file__)\nfcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    verdict = run_program(source)
    assert verdict.status == "error" and "PermissionError" in verdict.detail


RAW_THREADS = next(source for name, (source, _) in programs().items() if name == "floods: threads by the kernel's own call")


@pytest.mark.parametrize("users", ["all", "one"])
def test_a_program_has_a_bounded_number_of_threads(kind: str, users: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's threads are not counted by the kernel: a program is another user, or the supervisor is asked about each."""
    if users == "one":
        if kind == "landlock" or os.geteuid() != 0:
            pytest.skip("only root in a user namespace")
        sandbox.close()
        monkeypatch.setattr(isolation, "_root_can", lambda: False)
    many = (
        "import threading\nthreading.stack_size(32768)\ngo = threading.Event()\nown = []\ntry:\n    for _ in range(500):\n"
        "        own.append(threading.Thread(target=go.wait))\n        own[-1].start()\nexcept RuntimeError:\n    pass\ngo.set()\n"
        "made = len(own) - 1\n[t.join() for t in own[:made]]\nassert 50 <= made < 66, made"
    )
    serial = "from concurrent.futures import ThreadPoolExecutor as Pool\nfor _ in range(20):\n    with Pool(8) as p:\n        list(p.map(abs, [1] * 99))"
    at_once = (
        "import threading, time\nown = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(40)]\n[t.start() for t in own]"
    )
    *right, raw = run_programs([many, serial, at_once, RAW_THREADS], timeout=5.0)
    assert [verdict.status for verdict in right] == ["passed"] * 3, right
    assert raw.status == "failed" and 0 < int(raw.detail.split()[1]) < 66, raw
    assert run_program("def f(): return ['1', '2', '3']", "assert f() == ['1', '2', '3']").passed
    if users == "one":
        sandbox.close()
