"""The shipped runs: which there are, where they go, and what is removed from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from t2eval.bench import shipped
from t2eval.paths import experts_dir


def test_both_models_have_experts_and_baselines_of_every_seed(tmp_path: Path) -> None:
    jobs = shipped.jobs(tmp_path, 2)
    places = {job.output.relative_to(tmp_path).as_posix(): job for job in jobs}
    assert Counter(place.split("/")[0] for place in places) == {"library": 4, "baselines": 9, "vlm-library": 2, "vlm-baselines": 3}
    assert all(job.config.seed == 2 and "/seed-2/" in place for place, job in places.items())
    vision = places["vlm-library/seed-2/vision"].config.for_task()
    assert (vision.model, vision.layers, vision.wrong_reward, vision.objective) == ("embedded-vlm", "half", -0.1, "reinforce")
    dispatch = places["vlm-library/seed-2/dispatch"].config
    assert (dispatch.task, dispatch.model, dispatch.objective) == ("embedded_vqa_dispatch", "embedded-vlm", "supervised")
    assert {places[f"vlm-baselines/seed-2/{method}-vision"].config.method for method in ("lora", "ia3", "dora")} == {"lora", "ia3", "dora"}
    assert all(job.finished for seed in shipped.SEEDS for job in shipped.jobs(experts_dir(), seed)), "all of them are shipped"


def test_only_what_resuming_needs_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("settings.json", "log.jsonl", "test_outcomes.json", "training.json", "expert.json", "learning_curve.png"):
        (tmp_path / name).write_text("{}")
    shipped.tidy(tmp_path)
    shipped.tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "expert.json", "learning_curve.png"}
