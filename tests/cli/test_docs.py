"""The docs: every name, path and link in them exists, and the example of docs/add-a-task.md learns, from another folder."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from tests.docs import tutorial

_NAME = re.compile(r"(?<![\w./-])t2eval(?:\.[A-Za-z_]\w*)+")
_PATH = re.compile(r"(?<![\w./:=-])(?:t2eval|tests|tasks|docs|experts|configs|benchmarks|\.ci|\.github)/[\w./-]*\w/?(?![\w{-]|\.\w)")
"""A path from the top folder, unless it goes on with what the reader is to fill in."""
_MEMBER = re.compile(r"`(Adapted|Environment|Engine|Expert|Strategy|TrainConfig)\.([A-Za-z_]\w*)")
_CLASSES = {
    "Adapted": "t2eval.svf.adapted.Adapted",
    "Engine": "t2eval.generation.engine.Engine",
    "Environment": "t2eval.environment.environment.Environment",
    "Expert": "t2eval.Expert",
    "Strategy": "t2eval.models.strategy.Strategy",
    "TrainConfig": "t2eval.TrainConfig",
}
_PLACEHOLDER = re.compile(r"-N\b|\b[A-Z]{4,}\b(?!\.md)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def pages(root: Path) -> list[Path]:
    """What people read; not the changelog, which is about the past, nor the report, which a run wrote."""
    found = [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *(root / "docs").glob("*.md"),
        *(root / "docs" / "reference").glob("*.md"),
        *(root / "tasks").rglob("*.md"),
    ]
    return sorted([*found, *(root / "experts").glob("*.md"), *(root / "configs").rglob("*.md"), *(root / "benchmarks").glob("*.md")])


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the web."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(page.read_text("utf-8"))}


def test_every_dotted_name_exists(root: Path) -> None:
    named = {(page.relative_to(root), name) for page in pages(root) for name in _NAME.findall(page.read_text("utf-8"))}
    assert len(named) > 10  # the pages are where this test looks for them
    members = {(page.relative_to(root), match) for page in pages(root) for match in _MEMBER.findall(page.read_text("utf-8"))}
    assert members
    named |= {(page, f"{_CLASSES[owner]}.{member}") for page, (owner, member) in members}
    absent = [f"{page}: {name}" for page, name in sorted(named) if not exists(name)]
    assert not absent, "\n".join(absent)


def test_every_path_exists(root: Path) -> None:
    named = {(page, path) for page in pages(root) for path in _PATH.findall(page.read_text("utf-8")) if not _PLACEHOLDER.search(path)}
    assert len(named) > 10
    absent = [
        f"{page.relative_to(root)}: {path}"
        for page, path in sorted(named)
        if not (root / path).exists() and not (page.parent / path).exists()
    ]
    assert not absent, "\n".join(absent)


def test_every_link_leads_somewhere(root: Path) -> None:
    broken = []
    for page in pages(root):
        for target in _LINK.findall(page.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            other = page.parent / path if path else page
            if not other.exists() or (anchor and other.suffix == ".md" and anchor not in anchors(other)):
                broken.append(f"{page.relative_to(root)}: {target}")
    assert not broken, "\n".join(broken)


def test_every_page_is_in_the_navigation_of_the_site(root: Path) -> None:
    listed = (root / "mkdocs.yml").read_text("utf-8").split("\nnav:")[1]
    found = [page.relative_to(root / "docs").as_posix() for page in (root / "docs").rglob("*.md")]
    assert len(found) > 20 and [page for page in found if f"- {page}\n" not in listed] == []


@pytest.mark.parametrize(("name", "there"), [("t2eval.load_base", True), ("t2eval.cli.helppage.run", True), ("t2eval.base", False)])
def test_the_check_sees_a_wrong_name(name: str, there: bool) -> None:
    assert exists(name) is there


# ---------------------------------------------------------------------- the example
def test_the_page_on_tasks_has_an_example_that_learns(root: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (commands,) = tutorial.run(root / "docs" / "add-a-task.md", made, tutorial.of_this_checkout(tmp_path / "bin"))
    assert re.search(r"^my_task +shopping ", commands, re.MULTILINE)
    record = json.loads((made / "runs" / "shopping" / "training.json").read_text())
    before, after = (record["scores"][when]["test"] for when in ("before", "after"))
    assert after["score"] > before["score"] + 0.2
    assert "exact_match" in commands
    card = json.loads((made / "runs" / "shopping" / "expert.json").read_text())
    assert (card["label"], card["description"]) == ("shopping", "Questions about buying and giving away.")
