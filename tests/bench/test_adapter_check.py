"""The check of an adapter: lm-eval's own `peft=` gives the score that is printed, on the embedded base; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from t2eval import cli
from t2eval.paths import experts_dir

TASK, LIMIT = "embedded_math_seen", 16
MATH = experts_dir() / "library" / "seed-0" / "math"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The adapter, and what the command says of it."""
    folder = tmp_path_factory.mktemp("exported") / "lora"
    result = invoke("expert", "export", MATH, "--lora", 16, "--output", folder, "--check", TASK, "--limit", LIMIT, "--json")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


def test_lm_evals_own_class_gives_the_score_that_is_printed(exported: tuple[Path, dict]) -> None:
    from lm_eval import simple_evaluate

    from t2eval.environment.loading import make_task_manager

    folder, said = exported
    check = said["adapters"][0]["check"]
    manager = make_task_manager(task=TASK)

    def score(arguments: str) -> float:
        settings = {"limit": LIMIT, "batch_size": 16, "device": "cpu", "bootstrap_iters": 0, "task_manager": manager}
        results = simple_evaluate(model="hf", model_args=arguments, tasks=[TASK], **settings)["results"][TASK]
        return next(value for key, value in results.items() if key.startswith("exact_match,"))

    pretrained = f"pretrained={experts_dir() / 'base'},dtype=float32"
    assert check["adapter"]["score"] == pytest.approx(score(f"{pretrained},peft={folder}"))
    assert check["base"]["score"] == pytest.approx(score(pretrained))
    assert check["base"]["score"] < check["adapter"]["score"] and check["base"]["score"] < check["expert"]["score"]
    assert check["expert"]["n"] == check["difference"]["n"] == LIMIT
    assert check["difference"]["difference"] == pytest.approx(check["adapter"]["score"] - check["expert"]["score"])
    assert check["difference"]["test"] == "McNemar exact"


def test_what_is_said_of_an_adapter(exported: tuple[Path, dict], tmp_path: Path) -> None:
    folder, said = exported
    (adapter,) = said["adapters"]
    assert (adapter["name"], adapter["rank"], adapter["full_rank"], len(adapter["matrices"])) == ("math", 16, 128, 28)
    assert 0.6 < adapter["total"]["energy"] < 0.7
    assert "--max-lora-rank 16" in said["serve"]["vllm"] and f"math={folder}" in said["serve"]["sglang"]
    result = invoke("expert", "export", experts_dir() / "library" / "seed-0", "--energy", 0.5, "--output", tmp_path / "all")
    assert result.exit_code == 0, result.output
    for name in ("code", "dispatch", "math", "reasoning"):
        assert f"{name}: rank " in result.stdout and (tmp_path / "all" / name / "adapter_config.json").is_file()
    assert result.stdout.count("all together") == 4 and "vllm serve" in result.stdout and "sglang.launch_server" in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "one of --merged, --lora RANK and --energy SHARE"),
        (("--merged", "--lora", 4), "one of --merged, --lora RANK and --energy SHARE"),
        (("--lora", 4, "--limit", 3), "about --check TASK, which is not given"),
        (("--merged", "--check", TASK), "a merged model is exact"),
        (("--lora", 4, "--check", "embedded_math_sene"), "embedded_math_seen"),
        (("--lora", 400), "1 to 128, at which the adapter is exact"),
    ],
)
def test_wrong_usage(options: tuple[object, ...], said: str, tmp_path: Path) -> None:
    result = invoke("expert", "export", MATH, "--output", tmp_path / "out", *options)
    assert result.exit_code == 2 and said in result.output
    assert not (tmp_path / "out").exists()
