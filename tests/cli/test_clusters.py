"""docs/clusters.md: its scripts parse, and their commands run the parts that the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from t2eval.bench.shards import Shard, parse_shard
from t2eval.cli import main


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "docs" / "clusters.md").read_text("utf-8"), flags=re.DOTALL)


def commands(root: Path) -> list[list[str]]:
    """Every `t2 bench …` of the page's scripts, in words."""
    lines = [line for script in [*blocks(root, "bash"), *blocks(root, "yaml")] for line in script.splitlines()]
    return [shlex.split(match[0], comments=True) for line in lines if (match := re.search(r"t2 bench .*", line))]


def test_the_shell_scripts_parse(root: Path) -> None:
    scripts = blocks(root, "bash")
    assert len(scripts) == 2
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_option_is_one(root: Path) -> None:
    known = {option for parameter in main.commands["bench"].params for option in parameter.opts}
    found = commands(root)
    assert len(found) == 4
    for words in found:
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("first", [0, 1])
def test_the_array_runs_every_part_once(root: Path, first: int) -> None:
    (array,) = re.findall(r"#SBATCH --array=1-(\d+)", blocks(root, "bash")[0])
    count = int(array)
    facts = {
        "SLURM_ARRAY_TASK_MIN": first,
        "SLURM_ARRAY_TASK_MAX": first + count - 1,
        "SLURM_ARRAY_TASK_COUNT": count,
        "SLURM_ARRAY_TASK_STEP": 1,
    }
    environ = {name: str(value) for name, value in facts.items()}
    parts = [parse_shard("slurm", {**environ, "SLURM_ARRAY_TASK_ID": str(first + place)}) for place in range(count)]
    assert parts == [Shard(place, 8) for place in range(1, 9)]


def test_the_indexed_job_runs_every_part_once(root: Path) -> None:
    (job,) = (yaml.safe_load(block) for block in blocks(root, "yaml"))
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (line,) = container["args"]
    parts = []
    for index in range(job["spec"]["completions"]):
        said = subprocess.run(
            [*container["command"], line.replace("t2 bench", "echo")],
            env={"JOB_COMPLETION_INDEX": str(index)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        parts.append(parse_shard(said[said.index("--shard") + 1]))
    assert parts == [Shard(place, 8) for place in range(1, 9)]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
