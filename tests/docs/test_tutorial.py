"""The runner of tutorials sees a command that fails, an output that is not the page's, and files in the folder that the page is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.tutorial import Failed, missing, run


def _page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text.replace("~~~", "```"), encoding="utf-8")
    (folder / "work").mkdir()
    return page


def test_a_page_is_followed(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        '~~~sh\nexit 1  # is not run\n~~~\n~~~console\nmkdir inner\ncd inner\n~~~\n~~~yaml title="a/b.yaml"\nname: x\n~~~\n'
        "~~~console\ncat a/b.yaml\nfalse || echo exit code $?\n~~~\n~~~text\nname: …\nexit code 1\n~~~\n",
    )
    outputs = run(page, tmp_path / "work", dict(os.environ))
    assert outputs == ["", "name: x\nexit code 1\n"]
    assert (tmp_path / "work" / "inner" / "a" / "b.yaml").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("~~~console\nfalse\ntrue\n~~~\n", "exit code 1"),
        ("~~~console\necho one\n~~~\n~~~text\ntwo\n~~~\n", "two"),
        ("~~~sh\ntrue\n~~~\n", "no console block"),
    ],
)
def test_a_page_that_is_wrong_fails(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Failed, match=says):
        run(_page(tmp_path, text), tmp_path / "work", dict(os.environ))


def test_lines_are_expected_in_their_order() -> None:
    output = "score 0.70 of code\nscore 0.60 of math\n"
    assert missing("score … of code\nscore … of math\n", output) is None
    assert missing("score … of math\nscore … of code\n", output) == "score … of code"
    assert missing("score 0.71", output) == "score 0.71"
