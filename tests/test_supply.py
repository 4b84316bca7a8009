"""What t2eval depends on: each package of each extra is pinned, within the bounds that are declared; and the tools are pinned too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def _declared(root: Path) -> dict[str, list[Requirement]]:
    """Group of pyproject.toml → its requirements. Python 3.10 has no reader for TOML, and these lists are plain."""
    text = (root / "pyproject.toml").read_text()
    core = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.S | re.M)
    extras = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, re.S | re.M)
    assert core is not None and extras is not None
    groups = {"core": core[1], **dict(re.findall(r"^(\w+) = \[(.*?)\](?=\s*(?:#.*)?$)", extras[1], re.S | re.M))}
    return {name: [Requirement(each) for each in re.findall(r'"([^"]+)"', part)] for name, part in groups.items()}


def _pins(root: Path) -> dict[str, Version]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.+]+( ;.*)?", line) for line in lines), "a line that is no pin"
    return {canonicalize_name(name): Version(version.split(" ")[0]) for name, version in (line.split("==") for line in lines)}


def test_every_dependency_of_every_extra_is_pinned_within_its_bounds(root: Path) -> None:
    groups, pins = _declared(root), _pins(root)
    assert {"core", "dev", "ray", "serving", "trl"} <= set(groups) and len(groups["core"]) > 15
    wanted = [(name, each) for name, requirements in groups.items() for each in requirements]
    assert [f"{name}: {each}" for name, each in wanted if canonicalize_name(each.name) not in pins] == []
    outside = [f"{name}: {each}" for name, each in wanted if not each.specifier.contains(pins[canonicalize_name(each.name)])]
    assert outside == []


def test_every_dependency_of_the_core_has_a_lower_bound(root: Path) -> None:
    without = [str(each) for each in _declared(root)["core"] if not any(part.operator == ">=" for part in each.specifier)]
    assert without == []


def test_what_the_makefile_and_the_scripts_install_for_themselves_is_pinned(root: Path) -> None:
    text = "\n".join((root / name).read_text() for name in ("Makefile", ".ci/oldest"))
    tools = re.findall(r'"((?:cyclonedx-bom|pip-audit|uv)[^"]*)"', text)
    assert len(tools) == 3 and all("==" in tool for tool in tools)


@pytest.mark.parametrize("name", ["ci.yml", "compatibility.yml", "extras.yml", "leaderboard.yml"])
def test_workflows_may_read_only_and_run_what_is_there(root: Path, name: str) -> None:
    workflow: dict[Any, Any] = yaml.safe_load((root / ".github" / "workflows" / name).read_text())
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.M))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            run = step.get("run", "")
            assert all((root / script).is_file() for script in re.findall(r"(?<![\w/])\.ci/[\w-]+", run)), run
            assert set(re.findall(r"\bmake ([\w-]+)", run)) <= targets, run


def test_the_wheels_tests_are_there_and_each_has_a_job(root: Path) -> None:
    script = (root / ".ci" / "wheel-extras").read_text()
    cases = dict(re.findall(r"^    ([\w-]+)\)((?:(?!^    [\w*-]+\)).)*?);;", script, re.M | re.S))
    workflow = yaml.safe_load((root / ".github" / "workflows" / "extras.yml").read_text())
    assert set(cases) == set(workflow["jobs"]["wheel"]["strategy"]["matrix"]["name"])
    extras = set(_declared(root)) - {"core", "dev"}
    assert set(cases) - {"core", "lmms-eval"} <= extras
    for case in cases.values():
        (named,) = re.findall(r"tests=\(([^)]*)\)", case)
        assert named.split() and all((root / "tests" / test).is_file() for test in named.split())


def test_the_versions_of_python_that_are_tested_are_those_that_are_declared(root: Path) -> None:
    workflow = yaml.safe_load((root / ".github" / "workflows" / "compatibility.yml").read_text())
    tested = {entry for job in workflow["jobs"].values() for entry in job.get("strategy", {}).get("matrix", {}).get("python", [])}
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (root / "pyproject.toml").read_text())
    assert tested == set(declared) == {"3.10", "3.11", "3.12", "3.13", "3.14"}
