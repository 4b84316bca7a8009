import json
from pathlib import Path

import pytest
import yaml

import t2eval.training.train
from t2eval import paths
from t2eval.bench import shipped as shipped_runs
from t2eval.bench.config import BASELINES, DEFAULT_METHODS
from t2eval.bench.execute import run
from t2eval.errors import T2Error, UsageError
from t2eval.leaderboard import demo
from t2eval.leaderboard.report import LATENT_SKILL
from t2eval.training.config import TrainConfig
from tests.bench.fakes import FakeWorker

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder like experts/, with seeds 0 and 1 shipped, and training that only writes its record."""
    root = tmp_path / "experts"
    for seed in (0, 1):
        for name in shipped_runs.EXPERTS:
            (root / "library" / f"seed-{seed}" / name).mkdir(parents=True)
            (root / "library" / f"seed-{seed}" / name / "expert.safetensors").write_text(f"shipped {name} {seed}")
            (root / "library" / f"seed-{seed}" / name / "training.json").write_text("{}")
        (root / "library" / f"seed-{seed}" / "dispatch.json").write_text("{}")
        for method in BASELINES:
            for skill in shipped_runs.SKILLS:
                adapter = root / "baselines" / f"seed-{seed}" / f"{method}-{skill}"
                adapter.mkdir(parents=True)
                (adapter / "training.json").write_text("{}")
    (root / "recipes").mkdir()
    for recipe in (REPOSITORY / "experts" / "recipes").glob("*.yaml"):
        (root / "recipes" / recipe.name).write_text(recipe.read_text())
    (root / "benchmarks").mkdir()
    train = {"skills": list(shipped_runs.EXPERTS), "recipe": "../recipes/{run}.yaml"}
    settings = {"methods": ["base", "expert", "lora"], "tasks": ["t1"], "seeds": [0, 1, 2], "train": train}
    (root / "benchmarks" / "embedded.yaml").write_text(yaml.safe_dump(settings))
    for module in (paths, shipped_runs):
        monkeypatch.setattr(module, "experts_dir", lambda: root)
    monkeypatch.setattr(demo, "run", lambda plan, output, **options: run(plan, output, factory=FakeWorker, **options))
    trained = []

    def train_expert(config, progress=True):
        trained.append((config.task, config.method, str(config.output), config.seed))
        config.output.mkdir(parents=True)
        (config.output / "expert.safetensors").write_text("trained now")
        score = {"score": 0.5, "stderr": 0.01, "n": 400}
        record = {"seconds": 61.2, "scores": {"before": {"test": score}, "after": {"test": {**score, "score": 0.9}}}}
        (config.output / "training.json").write_text(json.dumps(record))

    monkeypatch.setattr(t2eval.training.train, "train_expert", train_expert)
    return trained


def test_trains_one_and_says_what_was_shipped(tmp_path, shipped):
    lines = []
    done = demo.run_demo(tmp_path / "out", progress=lines.append, limit=20)
    assert shipped == [("embedded_math_seen", "svf", str(tmp_path / "out/library/seed-0/math"), 0)]
    text = done.to_markdown()
    assert text == (tmp_path / "out" / "leaderboard.md").read_text()
    assert "Trained now:\n- math: 0.500 → 0.900 on the test split (n=400), 61 s" in text
    assert "seed 0: code, dispatch, reasoning, lora-math" in text
    assert "seed 1: code, dispatch, math, reasoning" in text
    assert LATENT_SKILL in text
    assert "(n=20)" in text
    assert "2 seeds" in text
    assert done.exit_code == 0
    library = tmp_path / "out" / "library"
    assert (library / "seed-0/math/expert.safetensors").read_text() == "trained now"
    assert (library / "seed-0/code/expert.safetensors").read_text() == "shipped code 0"
    assert (library / "seed-1/math/expert.safetensors").read_text() == "shipped math 1"
    assert (library / "seed-0/dispatch.json").exists()
    assert "[5/5]" in " ".join(lines)


def test_run_again_trains_and_evaluates_nothing(tmp_path, shipped):
    demo.run_demo(tmp_path / "out", progress=lambda _: None)
    lines = []
    again = demo.run_demo(tmp_path / "out", progress=lines.append)
    assert len(shipped) == 1
    assert again.result.skipped == 5
    assert "already trained: math" in " ".join(lines)


def test_a_folder_is_of_one_kind_of_demo(tmp_path, shipped):
    demo.run_demo(tmp_path / "out", progress=lambda _: None)
    with pytest.raises(UsageError, match="full was False there, and is True now"):
        demo.run_demo(tmp_path / "out", full=True)


def test_the_real_models_demo_trains_one_expert_and_one_adapter_in_its_folder_and_shares_none(tmp_path, monkeypatch):
    made = []

    def train(todo, pool, progress):
        made.extend((job.config.model, job.config.task, job.config.method, job.output) for job in todo)
        for job in todo:
            job.output.mkdir(parents=True)
            score = {"score": 0.5, "stderr": 0.01, "n": 100}
            (job.output / "training.json").write_text(
                json.dumps({"seconds": 60.0, "scores": {"before": {"test": score}, "after": {"test": score}}})
            )

    monkeypatch.setattr(demo.training, "train", train)
    monkeypatch.setattr(demo, "run", lambda plan, output, **options: run(plan, output, factory=FakeWorker, **options))
    done = demo.run_demo(tmp_path, limit=7, progress=lambda _: None, model="smollm2")
    assert made == [
        ("smollm2", "arc_easy", "svf", tmp_path / "experts" / "seed-0" / "reasoning"),
        ("smollm2", "arc_easy", "lora", tmp_path / "baselines" / "seed-0" / "lora-reasoning"),
    ]
    assert done.shipped == ()
    methods = [json.loads(line)["method"] for line in (tmp_path / "bench" / "rows.jsonl").read_text().splitlines()]
    assert set(methods) == {"base", "expert", "prompt", "fewshot", "lora"}
    assert "(n=7)" in done.to_markdown()
    with pytest.raises(UsageError, match="model was 'smollm2' there, and is 'embedded' now"):
        demo.run_demo(tmp_path, progress=lambda _: None)


@pytest.mark.parametrize(
    ("settings", "said"), [({"model": "smolm2"}, "Did you mean 'smollm2'"), ({"model": "smollm2", "full": True}, "no full demo of smollm2")]
)
def test_a_demo_that_does_not_exist(tmp_path, settings, said):
    with pytest.raises(UsageError, match=said):
        demo.run_demo(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_full_trains_everything_of_seed_0_and_of_the_others_what_is_not_shipped(tmp_path):
    todo = demo.jobs(tmp_path, full=True, seeds=(0, 1))
    others = [job for job in todo if job.config.seed]
    assert len(todo) == 13 + 12 + 12 and {job.config.method for job in others} == {"vera", "tinylora", "loraxs", "full"}
    assert len({job.output for job in todo}) == len(todo) and all(job.config.seed == 1 for job in others)
    for job in (job for job in todo if not job.config.seed):
        assert job.config == TrainConfig.from_yaml(
            REPOSITORY / "experts" / "recipes" / f"{job.name}.yaml",
            output=job.output,
            seed=0,
            resume=True,
            label=job.name.split("-")[-1],
        )


def test_the_full_table_has_the_further_baselines_with_the_budget_of_lora(tmp_path):
    further = {"vera", "tinylora", "loraxs", "full"}
    plan = demo.plan_of("embedded", tmp_path, seeds=[0], methods=[*DEFAULT_METHODS, *demo.FURTHER])
    shown = {(cell.method, cell.task) for cell in plan.cells if cell.method in further}
    assert shown == {(method, task) for method in further for task in plan.config.tasks}
    for label in ("math", "code", "reasoning"):
        settings = {}
        for method in ("lora", *further):
            config = TrainConfig.from_yaml(REPOSITORY / "experts" / "recipes" / f"{method}-{label}.yaml")
            settings[method] = config.model_dump(
                include={"task", "objective", "steps", "batch_size", "rollouts", "train_limit", "validation_limit"}
            )
        assert all(each == settings["lora"] for each in settings.values())


def test_a_seed_that_is_not_shipped(tmp_path, shipped):
    with pytest.raises(UsageError, match="No experts of seed 7 are shipped. There are: 0, 1"):
        demo.run_demo(tmp_path / "out", seeds=[7])


def test_ctrl_c_while_training_is_one_message(tmp_path, shipped, monkeypatch):
    def interrupted(config, progress=True):
        raise KeyboardInterrupt

    monkeypatch.setattr(t2eval.training.train, "train_expert", interrupted)
    with pytest.raises(T2Error, match="Interrupted while training"):
        demo.run_demo(tmp_path / "out", progress=lambda _: None)


def test_a_copy_that_was_cut_off_is_made_again(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("a")
    (tmp_path / ".target.partial").mkdir()
    (tmp_path / ".target.partial" / "rubbish").write_text("x")
    shipped_runs._copy(source, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["a"]


def test_the_shipped_benchmark_file_is_valid():
    from t2eval.bench.config import DEFAULT_METHODS as METHODS
    from t2eval.bench.plan import load_plan

    plan = load_plan(REPOSITORY / "experts" / "benchmarks" / "embedded.yaml")
    assert plan.config.methods == METHODS
    assert len(plan.cells) == 6 + 7 * 6 * 3


def test_the_benchmark_files_give_few_shot_search_settings_that_it_has():
    from t2eval.bench.plan import load_plan
    from t2eval.models.options import FewshotOptions

    for file in sorted((REPOSITORY / "configs").glob("*.yaml")):
        given = load_plan(file).config.model_args.get("fewshot", {})
        assert set(given) <= set(FewshotOptions.model_fields), file
