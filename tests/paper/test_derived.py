"""Derived libraries: written once, and again where what they are made of has changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2eval.basemodel.folders import embedded_library_dir
from t2eval.expert.expert import Expert
from t2eval.expert.library import load_library
from t2eval.paper import derived
from t2eval.paper.derived import Deriving, skills, write_library


def stamp(folder: Path) -> int:
    return (folder / "math" / "expert.safetensors").stat().st_mtime_ns


def z_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return next(expert.z for expert in load_library(folder) if expert.name == name)


def test_a_library_is_written_again_only_where_its_sources_or_the_seed_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (skills(embedded_library_dir(seed)) for seed in (0, 1))

    def write(experts: list[Expert], seed: int) -> int:
        deriving = Deriving("embedded", experts)
        return stamp(write_library(tmp_path / "library", functools.partial(deriving.shuffled, experts, seed)))

    times = [write(first, 0)]
    with monkeypatch.context() as quiet:
        quiet.setattr(derived, "load_base", lambda _: pytest.fail("the base was loaded though nothing is to be made"))
        assert write(first, 0) == times[0]
    times += [write(first, 1), write(second, 1)]
    assert len(set(times)) == 3
    expected = derived.shuffle(next(expert for expert in second if expert.name == "math").z, 1)
    found = z_of(tmp_path / "library", "math")
    assert all(torch.equal(found[path], z) for path, z in expected.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda expert: replace(expert, z={path: z + (path.endswith("up_proj")) for path, z in expert.z.items()}),
        lambda expert: expert.renamed("math", "other"),
        lambda expert: replace(expert, card=expert.card.model_copy(update={"description": "Another one."})),
    ],
)
def test_any_difference_of_an_expert_counts(tmp_path: Path, change: Callable[[Expert], Expert]) -> None:
    experts = skills(embedded_library_dir(0))
    before = stamp(write_library(tmp_path / "library", lambda: experts))
    assert stamp(write_library(tmp_path / "library", lambda: skills(embedded_library_dir(0)))) == before
    assert (
        stamp(write_library(tmp_path / "library", lambda: [change(expert) if expert.name == "math" else expert for expert in experts]))
        > before
    )


def test_a_library_that_was_cut_off_or_does_not_say_what_it_holds_is_written_again(tmp_path: Path) -> None:
    experts = skills(embedded_library_dir(0))
    marker = tmp_path / "library" / ".complete"
    before = stamp(write_library(tmp_path / "library", lambda: experts))
    for spoil in (marker.unlink, lambda: marker.write_bytes(b"")):
        spoil()
        (tmp_path / "library" / "left-over").mkdir()
        after = stamp(write_library(tmp_path / "library", lambda: experts))
        assert after > before and not (tmp_path / "library" / "left-over").exists()
        before = after
