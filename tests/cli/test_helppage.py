"""The help pages: made from the commands and from TrainConfig, and checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from t2eval.cli import helppage, main
from t2eval.cli.train import train_expert
from t2eval.cli.train_settings import train_settings
from t2eval.training.config import TrainConfig


@pytest.fixture
def docs(root: Path, tmp_path: Path) -> Path:
    for name in ("cli.md", "training.md"):
        shutil.copy(root / "docs" / name, tmp_path)
    return tmp_path


def test_help_pages_are_up_to_date(root: Path) -> None:
    assert helppage.run(["--check", str(root / "docs")]) == 0


@pytest.mark.parametrize(("name", "old"), [("cli.md", "doctor"), ("training.md", "`weight_decay`")])
def test_the_check_sees_a_change(docs: Path, name: str, old: str) -> None:
    page = docs / name
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, "other"))
    assert helppage.run(["--check", str(docs)]) == 1
    assert helppage.run([str(docs)]) == 0
    assert helppage.run(["--check", str(docs)]) == 0
    assert old in page.read_text()


def test_a_page_without_its_marks_is_named(docs: Path) -> None:
    (docs / "training.md").write_text("# Train an expert\n")
    with pytest.raises(ValueError, match="the marks around the settings"):
        helppage.run([str(docs)])


def test_help_all_lists_every_setting_with_its_default() -> None:
    shown = CliRunner().invoke(main, ["train-expert", "--help-all"])
    assert shown.exit_code == 0, shown.output
    assert "train-expert [OPTIONS]" in shown.output
    settings = shown.output.split("Settings, each by")[1]
    for name in TrainConfig.model_fields:
        assert f"\n  {name} " in settings, name
    flat = " ".join(settings.split())
    assert "[default: 64; paper: 256]" in flat
    assert "paper: 0, 0.1, 0.2, 0.3]" in flat


def test_a_setting_is_given_by_its_own_option_or_by_set() -> None:
    options = {setting.name: setting.option for setting in train_settings(train_expert)}
    assert options["task"] == "--task"
    assert options["max_seconds"] == "--max-seconds"
    assert options["lr"] == "--set lr=…"
    assert {"--label", "--description", "--device", "--include-path"} <= set(options.values())


def test_defaults_are_those_that_a_run_has() -> None:
    run = TrainConfig(task="t", output=Path("x"))
    shown = {setting.name: setting.default for setting in train_settings(train_expert)}
    assert shown["steps"] == str(run.steps)
    assert shown["lr"] == "0.004"
    assert shown["test"] == "true"
    assert shown["model"] == ""


def test_every_setting_says_what_it_means() -> None:
    assert not [setting.name for setting in train_settings(train_expert) if len(setting.meaning.split()) < 3]
