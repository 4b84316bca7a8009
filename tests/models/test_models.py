"""The lm-eval classes, through lm-eval's own evaluator on tiny models, and against plain HFLM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from t2eval import models as t2
from t2eval.basemodel.folders import embedded_base_dir, embedded_library_dir
from t2eval.environment.environment import Environment, make_task_manager
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert, mix
from t2eval.models import strategy as strategy_module
from t2eval.svf.attachment import attach
from t2eval.svf.matrices import find_matrix
from t2eval.svf.merge import compose
from tests.offline_datasets import datasets_cache, hub_rows, write_hub
from tests.tiny import chat_tokenizer, save_library, save_tiny, save_tiny_gguf, tiny_model, tiny_tokenizer

TASKS = Path(__file__).parents[1] / "fixtures" / "models_tasks"
LABELS = ("code", "dispatch", "math", "reasoning")
FORMAT = {
    "template": "{question}\nskill:",
    "labels": {"math": " math", "code": " code", "reasoning": " reasoning"},
    "others": " others",
    "until": ["\n"],
}
SMALL = {"shots": 4, "population": 4, "iterations": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in the Hub layout with a dispatch format, and a library of four experts that change its answers."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "base")
    (folder / "base" / "dispatch.json").write_text(json.dumps(FORMAT))
    save_library(folder / "library", *LABELS)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval lists all installed packages with pip after each evaluation: seconds that test nothing of ours."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)


def _make(kind: str, world: Path, **arguments: Any) -> Any:
    classes = {"expert": t2.T2Expert, "prompt": t2.T2Prompt, "cls": t2.T2Cls, "fewshot": t2.T2Fewshot}
    given = {"pretrained": str(world / "base"), "experts": str(world / "library"), "include_path": str(TASKS), "batch_size": 4}
    return classes[kind](**{**given, **arguments})


def _evaluate(lm: Any, tasks: list[str], **more: Any) -> dict[str, Any]:
    manager = make_task_manager(str(TASKS))
    found = simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, verbosity="ERROR", **more)
    assert found is not None
    return dict(found)


def _answers(results: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in sorted(results["samples"][task], key=lambda sample: int(sample["doc_id"]))]


def _composed(world: Path, z: dict[str, torch.Tensor] | None) -> HFLM:
    """Plain HFLM on a model whose weights are the dense W'."""
    model = tiny_model()
    bases = attach(tiny_model(), cache_dir=world / "bases").bases
    with torch.no_grad():
        for path, scale in (z or {}).items():
            module = model.get_submodule(path)
            module.weight.copy_(compose(find_matrix(model, path).weight(), bases[path], scale))
    return HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4)


def _bits(lm: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def _same_bits(lm: Any, before: dict[str, torch.Tensor]) -> bool:
    now = lm.model.state_dict()
    return set(now) == set(before) and all(torch.equal(now[name], tensor) for name, tensor in before.items())


def test_expert_equals_plain_lm_eval_on_the_composed_model(world: Path) -> None:
    expert = Expert.load(world / "library" / "e-math")
    lm = _make("expert", world, experts=str(world / "library" / "e-math"))
    before = _bits(lm)
    tasks = ["models_gen", "models_choice", "models_rolling"]
    found, plain, base = (_evaluate(each, tasks) for each in (lm, _composed(world, expert.z), _composed(world, None)))
    assert _answers(found, "models_gen") == _answers(plain, "models_gen") != _answers(base, "models_gen")
    for task in ("models_choice", "models_rolling"):
        one, other = _answers(found, task), _answers(plain, task)
        flat = [
            torch.tensor([float(x if isinstance(x, float) else x[0]) for doc in each for resp in doc for x in resp])
            for each in (one, other)
        ]
        assert torch.allclose(flat[0], flat[1], atol=1e-3)
    assert _same_bits(lm, before)
    record = found["config"]["t2"]
    assert record["strategy"] == "expert" and [each["sha256"] for each in record["experts"]] == [expert.sha256]
    assert record["second_pass"]["tokens"] > 0 and record["second_pass"]["seconds"] > 0
    assert found["config"]["model_num_parameters"] == tiny_model().num_parameters()
    json.dumps(record)


def test_fixed_alphas_mix_the_experts_in_the_order_of_their_names(world: Path) -> None:
    experts = [Expert.load(world / "library" / f"e-{label}") for label in ("code", "math", "reasoning")]
    for form in ("paper", "offset"):
        lm = _make("expert", world, alphas="0.2+0.3+0.5", form=form)
        plain = _composed(world, mix(experts, [0.2, 0.3, 0.5], form))  # type: ignore[arg-type]
        assert _answers(_evaluate(lm, ["models_gen"]), "models_gen") == _answers(_evaluate(plain, ["models_gen"]), "models_gen")
        assert lm.t2_info()["alphas"] == {"models_gen": [0.2, 0.3, 0.5]} and lm.t2_info()["alpha_order"] == [
            "e-code",
            "e-math",
            "e-reasoning",
        ]


def test_several_experts_without_alphas_say_what_to_do(world: Path) -> None:
    with pytest.raises(UsageError, match=r"3 experts \(e-code, e-math, e-reasoning\).*alphas=0\.33\+0\.33\+0\.33"):
        _make("expert", world)
    with pytest.raises(UsageError, match="2 numbers for 3 experts"):
        _make("expert", world, alphas="0.5+0.5")


def _requests() -> list[Instance]:
    """Two tasks and three kinds of answer, mixed as a user's program might."""
    made = []
    for index in range(6):
        for task in ("models_gen", "models_other"):
            doc = {"question": f"{task} question number {index}?"}
            made.append(
                Instance("generate_until", doc, (f"Q: {doc['question']}", {"until": ["\n"], "max_gen_toks": 5}), 0, (task, index, 1))
            )
    return made[::2] + made[1::2][::-1]


@pytest.mark.parametrize("kind", ["prompt", "cls"])
def test_dispatch_answers_each_document_with_its_expert_in_order(world: Path, kind: str) -> None:
    lm = _make(kind, world)
    before = _bits(lm)
    requests = _requests()
    found = lm.generate_until(requests, disable_tqdm=True)
    assert _same_bits(lm, before)
    experts = {label: Expert.load(world / "library" / f"e-{label}").z for label in LABELS}
    first = _composed(world, experts["dispatch"] if kind == "cls" else None)
    plain = {label: _composed(world, experts.get(label)) for label in ("math", "code", "reasoning", "others")}
    counts: dict[str, dict[str, int]] = {}
    for request, answer in zip(requests, found, strict=True):
        context = f"{request.doc['question']}\nskill:"
        scored = [Instance("loglikelihood", {}, (context, f" {label}"), 0, ("t", 0, 1)) for label in plain]
        values = [value for value, _ in first.loglikelihood(scored, disable_tqdm=True)]
        label = list(plain)[max(range(4), key=values.__getitem__)]
        counts.setdefault(request.task_name, {}).setdefault(label, 0)
        counts[request.task_name][label] += 1
        assert answer == plain[label].generate_until([request], disable_tqdm=True)[0]
    info = lm.t2_info()
    assert info["dispatch"] == counts and info["strategy"] == kind
    assert info["first_pass"]["tokens"] > 0


def test_a_limit_of_tokens_that_leaves_no_room_for_the_prompt_is_refused_before_anything_is_answered(world: Path) -> None:
    lm = _make("prompt", world)
    manager = make_task_manager(task="embedded_math_unseen")
    with pytest.raises(T2Error, match=r"An answer may have 5000 tokens, .* no room is left for the prompt"):
        simple_evaluate(
            lm, tasks=["embedded_math_unseen"], limit=1, gen_kwargs={"max_gen_toks": 5000}, bootstrap_iters=0, task_manager=manager
        )


def test_dispatch_is_made_once_a_document(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = _make("prompt", world)
    results = _evaluate(lm, ["models_choice", "models_gen"])
    assert results["config"]["t2"]["first_pass"]["tokens"] > 0
    again = _evaluate(lm, ["models_choice", "models_gen"])
    assert again["config"]["t2"]["first_pass"]["tokens"] == 0  # the base's decision on a question is known
    assert _answers(results, "models_choice") == _answers(again, "models_choice")
    for task in ("models_choice", "models_gen"):
        assert sum(results["config"]["t2"]["dispatch"][task].values()) == 9


def test_the_papers_prompt_is_used_without_a_format_file(world: Path, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "plain", max_position_embeddings=4096)
    lm = _make("prompt", world, pretrained=str(base))
    lm.generate_until(_requests()[:2], disable_tqdm=True)
    assert "About reasoning" in next(iter(lm._dispatchers.values())).prompt("Why?")
    assert "dispatch" not in next(iter(lm._dispatchers.values())).outcomes


def test_a_format_file_is_read_from_joined_folders_and_two_that_differ_are_refused(world: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, labels in ((one, LABELS[:1]), (other, LABELS[1:])):
        for label in labels:
            shutil.copytree(world / "library" / f"e-{label}", folder / f"e-{label}")
    form = {"template": "{question}\nkind:", "labels": {}, "unlisted": " {label}"}
    (other / "dispatch.json").write_text(json.dumps(form))
    lm = _make("prompt", world, experts=f"{one}+{other}")
    assert lm._form.template == form["template"] and set(lm._form.labels) == set(LABELS) - {"dispatch"}  # and not the base's
    (one / "dispatch.json").write_text(json.dumps({**form, "template": "{question}\nskill:"}))
    with pytest.raises(UsageError, match=rf"joins folders whose dispatch.json differ, {one} and {other}"):
        _make("prompt", world, experts=f"{one}+{other}")


def test_soft_mix_answers_each_document_with_its_own_alphas(world: Path) -> None:
    lm = _make("prompt", world, mix="soft", batch_size=5)
    before = _bits(lm)
    requests = _requests()
    found = lm.generate_until(requests, disable_tqdm=True)
    assert _same_bits(lm, before)
    experts = {label: Expert.load(world / "library" / f"e-{label}").z for label in LABELS}
    for request, answer in list(zip(requests, found, strict=True))[::4]:
        weights = next(iter(lm._dispatchers.values())).decide([request.doc["question"]])[0].weights
        z = {path: weights["others"] + sum(weights[k] * experts[k][path] for k in FORMAT["labels"]) for path in experts["math"]}
        assert answer == _composed(world, z).generate_until([request], disable_tqdm=True)[0]
    assert "beyond the paper" in lm.t2_info()["mix_note"]
    assert len(_evaluate(lm, ["models_choice"], limit=3)["samples"]["models_choice"]) == 3
    with pytest.raises(UsageError, match="dispatch=score"):
        _make("prompt", world, mix="soft", dispatch="generate")


def test_generated_dispatch_runs_and_counts(world: Path) -> None:
    lm = _make("prompt", world, dispatch="generate", dispatch_tokens=5)
    assert len(lm.generate_until(_requests(), disable_tqdm=True)) == 12
    assert sum(sum(counts.values()) for counts in lm.t2_info()["dispatch"].values()) == 12


def test_a_chosen_label_without_an_expert_is_an_error_and_touches_nothing(world: Path) -> None:
    full = _make("cls", world)
    full.keys(_requests())
    chosen = ({choice.label for choice in full._chosen.values()} - {"others"}).pop()
    lm = _make("cls", world, experts="+".join(str(world / "library" / f"e-{label}") for label in LABELS if label != chosen))
    before = _bits(lm)
    with pytest.raises(T2Error, match="library has no expert with that label"):
        lm.generate_until(_requests(), disable_tqdm=True)
    assert _same_bits(lm, before)
    with pytest.raises(UsageError, match="t2-cls needs one classification expert"):
        _make("cls", world, experts=str(world / "library" / "e-math"))


def test_an_exception_in_the_second_pass_leaves_the_base_weights(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = _make("expert", world, experts=str(world / "library" / "e-code"))
    before = _bits(lm)

    def broken(*_arguments: Any, **_named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(HFLM, "generate_until", broken)
    with pytest.raises(KeyboardInterrupt):
        lm.generate_until(_requests(), disable_tqdm=True)
    assert _same_bits(lm, before) and not lm.adapted.is_merged


def test_fewshot_adapts_on_examples_that_are_not_scored(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = Environment._example

    def spy(self: Environment, doc: dict[str, Any], source: str, index: int) -> Any:
        seen.append(source)
        return plain(self, doc, source, index)

    monkeypatch.setattr(Environment, "_example", spy)
    lm = _make("fewshot", world, **SMALL)
    before = _bits(lm)
    results = _evaluate(lm, ["models_gen", "models_choice"])
    assert set(seen) == {"validation"} and _same_bits(lm, before)
    info = results["config"]["t2"]
    json.dumps(info)
    for task in ("models_gen", "models_choice"):
        record = info["adaptation"][task]
        assert record["split"] == "validation" and record["examples"] == 4 and not record["overlaps_test"]
        assert 4 < record["evaluations"] <= 4 * 2 + 1 and record["search"] == "cem" and 0 <= record["score"] <= 1
        assert len(info["alphas"][task]) == 3 and info["alpha_order"] == ["e-code", "e-math", "e-reasoning"]
    experts = [Expert.load(world / "library" / f"e-{label}") for label in ("code", "math", "reasoning")]
    composed = _composed(world, mix(experts, info["alphas"]["models_gen"]))
    assert _answers(results, "models_gen") == _answers(_evaluate(composed, ["models_gen"]), "models_gen")
    again = _evaluate(_make("fewshot", world, **SMALL), ["models_gen"])
    assert again["config"]["t2"]["alphas"]["models_gen"] == info["alphas"]["models_gen"]


def test_fewshot_says_so_where_only_test_documents_exist(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = _make("fewshot", world, granularity="layer", search="cmaes", normalize=True, ties="reference", **SMALL)
    with caplog.at_level("WARNING"):
        record = _evaluate(lm, ["models_testonly"])["config"]["t2"]
    adaptation = record["adaptation"]["models_testonly"]
    assert adaptation["overlaps_test"] and adaptation["split"] == "test" and len(adaptation["doc_ids"]) == 4
    assert "which lm-eval scores too" in caplog.text
    alphas = torch.tensor(record["alphas"]["models_testonly"])
    assert alphas.shape == (2, 3) and torch.allclose(alphas.sum(1), torch.ones(2), atol=1e-5)


def test_alpha_is_divided_by_its_sum_unless_one_expert_is_alone(world: Path) -> None:
    assert _make("fewshot", world)._coefficients.normalize
    assert not _make("fewshot", world, experts=str(world / "library" / "e-math"))._coefficients.normalize
    assert not _make("fewshot", world, preset="paper")._coefficients.normalize


def test_presets_and_options_reach_the_search(world: Path) -> None:
    paper = _make("fewshot", world, preset="paper").search
    assert (paper.search.population, paper.search.elites, paper.search.iterations, paper.choose) == (32, 6, 100, "mean")
    named = _make("fewshot", world, preset="paper", population=5, choose="best").search
    assert (named.search.population, named.search.elites, named.search.iterations, named.choose) == (5, None, 100, "best")
    assert (paper.search.method, paper.shots, paper.granularity, paper.normalize, paper.form) == ("cem", 10, "task", False, "paper")
    other = _make(
        "fewshot", world, preset="paper", search="random", granularity="matrix", normalize=True, form="offset", adapt_seed=4
    ).search
    assert (other.search.method, other.search.seed, other.granularity, other.normalize, other.form) == (
        "random",
        4,
        "matrix",
        True,
        "offset",
    )


def test_one_alpha_a_matrix_answers_as_its_mix(world: Path) -> None:
    lm = _make("fewshot", world, granularity="matrix", search="random", **SMALL)
    results = _evaluate(lm, ["models_gen"])
    t2 = results["config"]["t2"]
    rows, alphas = t2["adaptation"]["models_gen"]["alpha_rows"], t2["alphas"]["models_gen"]
    experts = [Expert.load(world / "library" / f"e-{label}") for label in ("code", "math", "reasoning")]
    assert rows == sorted(experts[0].z) and t2["adaptation"]["models_gen"]["search"] == "random"
    composed = _composed(world, mix(experts, dict(zip(rows, alphas, strict=True))))
    assert _answers(results, "models_gen") == _answers(_evaluate(composed, ["models_gen"]), "models_gen")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("prompt", {"mix": "sofd"}, r"value of model_args mix 'sofd'. Did you mean 'soft'"),
        ("fewshot", {"granularity": "lair"}, "Did you mean 'layer'"),
        ("fewshot", {"shotz": 3}, r"option in model_args 'shotz'. Did you mean 'shots'"),
        ("prompt", {"shots": 3}, "'shots' is an option of t2-fewshot, not of t2-prompt"),
        ("fewshot", {"shots": "many"}, "shots='many': it must be a whole number"),
        ("expert", {"alphas": "a+b"}, "alphas="),
        ("expert", {"experts": None}, "needs experts="),
        ("fewshot", {"include_path": "/nowhere"}, "not a folder"),
        ("expert", {"peft": "somewhere"}, "merge the adapter"),
    ],
)
def test_a_users_slip_is_one_message(world: Path, kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _make(kind, world, **arguments).generate_until(_requests()[:1], disable_tqdm=True)


def test_a_base_that_cannot_be_loaded_says_what_to_do(world: Path) -> None:
    with pytest.raises(T2Error, match="could not be loaded"):
        _make("prompt", world, pretrained="nobody/no-such-model")


def test_an_option_that_nothing_knows_is_refused_by_name(world: Path) -> None:
    with pytest.raises(UsageError, match="model_args: 'layer' is no option of t2eval or of lm-eval's class"):
        _make("prompt", world, layer=99)


def test_an_expert_of_another_model_is_refused(world: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", intermediate_size=96)
    with pytest.raises(T2Error, match="e-code"):
        _make("prompt", world, pretrained=str(other))


def test_under_lm_evals_command_line_a_slip_ends_with_a_message_and_a_code(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/bin/lm_eval", "run"])
    with pytest.raises(SystemExit) as usage:
        _make("prompt", world, mix="sofd")
    with pytest.raises(SystemExit) as failure:
        _make("prompt", world, experts=str(world / "nothing"))
    assert (usage.value.code, failure.value.code) == (2, 1)
    assert capsys.readouterr().err.count("t2eval: ") == 2


def test_each_strategy_has_its_own_response_cache_and_the_first_pass_none(world: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "responses")
    math, code = (_make("expert", world, experts=str(world / "library" / f"e-{label}")) for label in ("math", "code"))
    first = _evaluate(math, ["models_gen"], use_cache=cache)
    second = _evaluate(code, ["models_gen"], use_cache=cache)
    assert _answers(first, "models_gen") != _answers(second, "models_gen")
    assert math.second_pass.tokens > 0 and "note" not in first["config"]["t2"]
    again = _evaluate(math, ["models_gen"], use_cache=cache)
    assert _answers(again, "models_gen") == _answers(first, "models_gen")
    assert math.second_pass.tokens == 0 and "nothing was chosen now" in again["config"]["t2"]["note"]
    lm = _make("fewshot", world, **SMALL)
    _evaluate(lm, ["models_gen"], use_cache=cache)
    assert len(lm.cache_hook.dbdict) == 9  # the test documents alone: nothing of the search


def test_lm_evals_own_default_device_is_no_request(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(world / "placed")
    given = {"pretrained": str(world / "placed"), "experts": str(world / "library"), "batch_size": 4, "include_path": str(TASKS)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert t2.T2Prompt(**given, device="cuda:0").model.device == torch.device("cpu")
    with pytest.raises(UsageError, match="The device is 'cuda:1', and torch sees no CUDA GPU here"):
        t2.T2Prompt(**given, device="cuda:1")


def test_half_precision_is_widened_on_a_cpu_unless_it_is_asked_for(world: Path, tmp_path: Path) -> None:
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    given = {"pretrained": str(tmp_path), "experts": str(world / "library"), "include_path": str(TASKS), "allow_basis_mismatch": True}
    with pytest.warns(UserWarning, match="singular basis"):
        assert t2.T2Prompt(**given, device="cpu").model.dtype == torch.float32
        assert t2.T2Prompt(**given, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_gguf_file_answers_as_the_model_that_it_was_made_of(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder = save_tiny_gguf(tmp_path / "packed", "1.gguf")
    plain = _make("expert", world, experts=str(world / "library" / "e-math"))
    packed = _make("expert", world, pretrained=str(folder), gguf_file="1.gguf", experts=str(world / "library" / "e-math"), device="cpu")
    assert packed.model.dtype == torch.float32
    answers = [lm.generate_until(_requests(), disable_tqdm=True) for lm in (plain, packed)]
    assert answers[0] == answers[1] and any(answers[0])
    with pytest.raises(UsageError, match="Unknown GGUF file '2.gguf'. Did you mean '1.gguf'"):
        _make("expert", world, pretrained=str(folder), gguf_file="2.gguf")


def test_the_base_weights_wait_where_it_is_asked(world: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    one = {"pretrained": model, "tokenizer": tokenizer, "experts": str(world / "library" / "e-math")}
    assert _make("expert", world, **one).adapted.keep_base == "device"
    waiting = _make("expert", world, **one, keep_base="host")
    assert waiting.adapted.keep_base == "host"
    before = _bits(waiting)
    assert waiting.generate_until(_requests()[:2], disable_tqdm=True)
    assert _same_bits(waiting, before)
    assert _make("prompt", world, **{**one, "experts": str(world / "library")}).adapted.keep_base == "host", "nothing was asked for"
    with pytest.raises(UsageError, match="keep_base.*'hots'.*Did you mean 'host'"):
        _make("expert", world, keep_base="hots")


def test_models_share_one_set_of_hooks(world: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    given = {"experts": str(world / "library"), "batch_size": 4, "tokenizer": tokenizer, "include_path": str(TASKS)}
    one, other = t2.T2Prompt(pretrained=model, **given), t2.T2Cls(pretrained=model, **given)
    assert one.adapted.parameters is other.adapted.parameters
    assert len(one.generate_until(_requests()[:2], disable_tqdm=True)) == len(other.generate_until(_requests()[:2], disable_tqdm=True)) == 2


def test_two_processes_on_cpus_divide_the_work(world: Path) -> None:
    """HFLM leaves rank 0 of 1 on CPUs; two accelerate processes must share the documents and end with the same record."""
    tasks = "models_gen,models_choice"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(TASKS.parent / "models_ranks.py")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TASKS.parents[2])}
    ran = subprocess.run(
        [sys.executable, *command, str(world), str(TASKS), tasks], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    together = json.loads(ran.stdout.strip().splitlines()[-1])
    for kind in ("fewshot", "prompt"):
        alone = _evaluate(_make(kind, world, **(SMALL if kind == "fewshot" else {})), tasks.split(","))
        info, other = alone["config"]["t2"], together[kind]["t2"]
        assert other["alphas"] == info["alphas"] and other["dispatch"] == info["dispatch"]
        assert together[kind]["samples"] == dict.fromkeys(tasks.split(","), 9)
        assert together[kind]["results"] == pytest.approx(alone["results"]["models_gen"]["even,none"])
        own = together[kind]["own_evaluations"] if kind == "fewshot" else None
        if own is not None:  # each process evaluated only a part of the candidates
            evaluations = info["adaptation"]["models_gen"]["evaluations"]
            assert sum(own) == evaluations and max(own) < evaluations


@pytest.fixture
def arc(tmp_path: Path) -> Iterator[None]:
    write_hub(tmp_path / "datasets", "allenai/ai2_arc")
    with datasets_cache(tmp_path / "datasets"):
        yield


@pytest.mark.usefixtures("arc")
@pytest.mark.parametrize("kind", ["fewshot", "prompt"])
def test_lm_evals_own_task_runs(world: Path, kind: str) -> None:
    lm = _make(kind, world, **(SMALL if kind == "fewshot" else {}))
    results = _evaluate(lm, ["arc_challenge"])
    assert results["n-samples"]["arc_challenge"]["effective"] == len(hub_rows("allenai/ai2_arc", "ARC-Challenge", "test"))
    if kind == "fewshot":
        assert results["config"]["t2"]["adaptation"]["arc_challenge"]["split"] == "validation"


@pytest.mark.usefixtures("arc")
def test_fewer_examples_than_shots_are_all_used_and_said(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = _make("fewshot", world, **{**SMALL, "shots": 50})
    found = _evaluate(lm, ["arc_challenge"], limit=2)["config"]["t2"]["adaptation"]["arc_challenge"]
    count = len(hub_rows("allenai/ai2_arc", "ARC-Challenge", "validation"))
    assert (found["examples"], found["shots"], found["overlaps_test"]) == (count, 50, False)
    assert f"has {count} adaptation examples (split validation), fewer than shots=50" in caplog.text


def test_the_search_answers_with_the_settings_of_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Environment] = []
    made = Environment.from_run

    def kept(*arguments: Any, **named: Any) -> Environment:
        seen.append(made(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(Environment, "from_run", kept)
    tokenizer = chat_tokenizer("mistral")
    lm = _make("fewshot", world, pretrained=tiny_model(), tokenizer=tokenizer, **SMALL)
    results = _evaluate(lm, ["models_gen"], gen_kwargs={"until": ["!"], "max_gen_toks": 4}, apply_chat_template=True)
    assert [(one.until, one.max_new_tokens) for one in seen] == [(["!"], 4)]
    scored = {sample["arguments"][0][0] for sample in results["samples"]["models_gen"]}
    assert {example.prompt for example in seen[0].examples("test")} == scored and all(text.startswith("<s>[INST] ") for text in scored)


@pytest.mark.usefixtures("arc")
def test_lm_evals_own_task_runs_bare_on_the_embedded_base() -> None:
    results = simple_evaluate(
        "t2-fewshot",
        model_args="iterations=2,population=4",
        tasks=["arc_challenge"],
        bootstrap_iters=0,
        task_manager=make_task_manager(),
        batch_size=8,
    )
    assert results is not None
    info = results["config"]["t2"]
    assert info["adaptation"]["arc_challenge"]["split"] == "validation" and info["alpha_order"]


def test_the_embedded_base_is_the_default_and_the_tasks_skill_picks_its_expert(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert embedded_base_dir().name == "base" and embedded_library_dir().name == "seed-0"
    monkeypatch.setattr("t2eval.basemodel.folders.embedded_base_dir", lambda _name="embedded": world / "base")
    monkeypatch.setattr(strategy_module, "embedded_library_dir", lambda _seed: world / "library")
    lm = t2.T2Expert(include_path=str(TASKS), batch_size=4)
    found = _evaluate(lm, ["models_gen"])
    plain = _composed(world, Expert.load(world / "library" / "e-math").z)
    assert _answers(found, "models_gen") == _answers(_evaluate(plain, ["models_gen"]), "models_gen")
    assert found["config"]["t2"]["expert_by_label"] == {"models_gen": "e-math"}
    with pytest.raises(UsageError, match="does not say which skill"):
        _evaluate(lm, ["models_choice"])
    with pytest.raises(UsageError, match="poetry"):
        _evaluate(lm, ["models_other"])
    monkeypatch.setattr("t2eval.basemodel.folders.embedded_base_dir", lambda _name: tmp_path)
    with pytest.raises(T2Error, match="embedded base model is not in"):
        t2.T2Prompt()
