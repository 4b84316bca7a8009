"""One evaluation after the other on a model object, what is said of each, and what lm-eval's response cache may keep."""

from __future__ import annotations

import gc
import inspect
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from t2eval import models as t2
from t2eval.basemodel.load import load_base
from t2eval.environment import harness
from t2eval.environment.loading import make_task_manager
from t2eval.errors import UsageError
from t2eval.expert.prompts import PROBES, PromptVectors
from t2eval.generation.engine import Engine
from t2eval.generation.vectors import prompt_vectors
from t2eval.models import identity, options
from tests.models.test_models import FORMAT, LABELS, SMALL, TASKS
from tests.tiny import save_library, save_tiny, tiny_tokenizer

CLASSES = {"expert": t2.T2Expert, "prompt": t2.T2Prompt, "cls": t2.T2Cls, "nearest": t2.T2Nearest, "fewshot": t2.T2Fewshot}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A base model with a dispatch format, and a library of four experts, all of them to be changed."""
    save_tiny(tmp_path / "base")
    (tmp_path / "base" / "dispatch.json").write_text(json.dumps(FORMAT))
    save_library(tmp_path / "library", *LABELS)
    return tmp_path


def _make(kind: str, world: Path, **arguments: Any) -> Any:
    given = {"pretrained": str(world / "base"), "experts": str(world / "library"), "batch_size": 4}
    return CLASSES[kind](**{**given, **arguments})


def _evaluate(lm: Any, *tasks: str, **more: Any) -> dict[str, Any]:
    manager = make_task_manager(str(TASKS), task=tasks[0])
    found = simple_evaluate(lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **more)
    assert found is not None
    return dict(found)


# ---------------------------------------------------------------------- one after the other
def test_a_second_evaluation_adapts_anew_and_tells_of_itself_alone(world: Path) -> None:
    lm = _make("fewshot", world, **SMALL)
    first = _evaluate(lm, "models_gen", "models_choice")["config"]["t2"]
    assert set(first["alphas"]) == {"models_gen", "models_choice"}
    second = _evaluate(lm, "models_gen", gen_kwargs={"until": ["e"]})["config"]["t2"]
    assert set(second["alphas"]) == set(second["adaptation"]) == {"models_gen"}
    assert 0 < second["first_pass"]["tokens"] < first["first_pass"]["tokens"]  # searched again, for one task
    assert second["second_pass"]["tokens"] < first["second_pass"]["tokens"]


def test_labels_of_one_evaluation_are_not_the_nexts(world: Path) -> None:
    lm = _make("prompt", world)
    assert sum(_evaluate(lm, "models_gen")["config"]["t2"]["dispatch"]["models_gen"].values()) == 9
    second = _evaluate(lm, "models_choice", limit=2)["config"]["t2"]["dispatch"]
    assert set(second) == {"models_choice"} and sum(second["models_choice"].values()) == 2
    assert lm.dispatched("models_gen") == {}


def _known_prompts(world: Path) -> None:
    """Vectors of two prompts beside each expert, for `t2-nearest`."""
    base = load_base(str(world / "base"), device="cpu")
    engine = Engine(*base, batch_size=4)
    probes = prompt_vectors(engine, list(PROBES))
    for label in LABELS:
        PromptVectors(prompt_vectors(engine, [label, f"{label}?"]), probes, "models_gen", "tiny").save(world / "library" / f"e-{label}")


@pytest.mark.unwatched
@pytest.mark.parametrize("kind", CLASSES)
def test_the_first_of_two_models_is_freed_when_the_second_is_there(world: Path, kind: str) -> None:
    own = SMALL if kind == "fewshot" else {}
    given = {"experts": str(world / "library" / "e-math")} if kind == "expert" else {}
    if kind == "nearest":
        _known_prompts(world)
    first = _make(kind, world, **own, **given)
    _evaluate(first, "models_gen", limit=2)
    held = [weakref.ref(first), weakref.ref(first.model), *map(weakref.ref, first.model.parameters())]
    assert len(held) > 10 and all(reference() is not None for reference in held)
    del first
    second = _make(kind, world, **own, **given)
    gc.collect()
    assert not [reference() for reference in held if reference() is not None]
    assert _evaluate(second, "models_gen", limit=2)["samples"]["models_gen"]


# ---------------------------------------------------------------------- what is seen
def test_half_of_a_surrogate_pair_in_an_answer_does_not_cost_the_samples(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that is written in Python may decode one; lm-eval then says that it could not save the samples, and goes on."""
    from lm_eval.loggers import EvaluationTracker

    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, disable_tqdm=False: ["a\ud800b"] * len(requests))
    lm, tracker = _make("expert", world, experts=str(world / "library" / "e-math")), EvaluationTracker(output_path=str(world / "out"))
    results = _evaluate(lm, "models_gen", limit=2, evaluation_tracker=tracker)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples("models_gen", samples["models_gen"])
    written = [json.loads(line) for file in (world / "out").rglob("samples_*.jsonl") for line in file.read_text().splitlines()]
    assert [line["resps"][0][0] for line in written] == ["a\\ud800b"] * 2


def test_each_logged_sample_has_its_decision_and_probabilities(world: Path) -> None:
    lm = _make("prompt", world)
    results = _evaluate(lm, "models_gen", "models_choice")
    for task in ("models_gen", "models_choice"):
        told = [sample["t2"] for sample in results["samples"][task]]
        counts = results["config"]["t2"]["dispatch"][task]
        assert {label: sum(each["decision"] == label for each in told) for label in counts} == counts
        for each in told:
            assert sum(each["probabilities"].values()) == pytest.approx(1, abs=1e-4)
            assert each["decision"] == max(each["probabilities"], key=each["probabilities"].get)
            assert each["expert"] == (None if each["decision"] == "others" else f"e-{each['decision']}")


@pytest.mark.skipif(not harness.renumbers_samples(), reason="lm-eval 0.5.0.dev1 itself fails on --samples: an IndexError as it logs them")
def test_chosen_documents_have_their_own_decisions(world: Path) -> None:
    lm = _make("prompt", world)
    results = _evaluate(lm, "models_gen")
    chosen = _evaluate(lm, "models_gen", samples={"models_gen": [7, 2]})["samples"]["models_gen"]
    before = {sample["doc"]["question"]: sample["t2"] for sample in results["samples"]["models_gen"]}
    assert [sample["t2"] for sample in chosen] == [before[sample["doc"]["question"]] for sample in chosen]


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("fewshot", SMALL, "models_gen: α e-code 0."),
        ("prompt", {}, "models_gen: "),
        ("expert", {"alphas": "0.2+0.3+0.5"}, "0.2 e-code, 0.3 e-math, 0.5 e-reasoning"),
    ],
)
def test_one_line_says_what_was_chosen(
    world: Path, kind: str, arguments: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = _make(kind, world, **arguments)
    monkeypatch.setattr("sys.argv", ["/some/bin/lm_eval"])
    _evaluate(lm, "models_gen")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"t2-{kind} | ")]
    assert said in line and "first pass " in line


def test_the_embedded_base_is_named_in_what_lm_eval_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(t2.T2Prompt, "__init__", lambda _self, **given: made.update(given))
    arguments: dict[str, Any] = {}
    t2.T2Prompt.create_from_arg_obj(arguments, {"batch_size": 2})
    assert arguments["pretrained"] == made["pretrained"] == "embedded"
    named = {"pretrained": "mine"}
    t2.T2Prompt.create_from_arg_obj(named)
    assert named == {"pretrained": "mine"}


# ---------------------------------------------------------------------- what is refused before anything is loaded
@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*_arguments: Any, **_named: Any) -> None:
        raise AssertionError("the base model is loaded")

    monkeypatch.setattr(HFLM, "__init__", loading)


@pytest.mark.usefixtures("no_loading")
def test_fewshot_refuses_a_task_without_right_answers_by_name(world: Path) -> None:
    manager = make_task_manager(str(TASKS), task="models_rolling")
    arguments = {"pretrained": str(world / "base"), "experts": str(world / "library")}
    with pytest.raises(UsageError, match="'models_rolling' has output type 'loglikelihood_rolling'.*t2-expert, t2-prompt or t2-cls"):
        simple_evaluate("t2-fewshot", model_args=arguments, tasks=["models_gen", "models_rolling"], task_manager=manager)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("cls", {"experts": "library/e-math"}, "t2-cls needs one classification expert.*--task t2_dispatch"),
        ("fewshot", {"population": 2}, "population"),
        ("fewshot", {"search": "cmaes", "experts": "library/e-math"}, "at least two coefficients"),
        ("prompt", {"dtype": "float33"}, "Unknown dtype 'float33'. Did you mean 'float32'"),
        ("expert", {"alphas": "0.5+0.5"}, "2 numbers for 3 experts"),
        ("prompt", {"mix": "soft", "dispatch": "generate"}, "dispatch=score"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    world: Path, kind: str, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(UsageError, match=message):
        _make(kind, world, **arguments)


# ---------------------------------------------------------------------- lm-eval's conversion of types
@pytest.mark.parametrize(
    ("typed", "read"), [("123", 123), ("007", 7), ("1e3", 1000.0), ("true", True), ("True", True), ("-4", -4), ("0.50", 0.5)]
)
def test_a_name_that_lm_eval_takes_for_a_value_is_a_name_again(
    typed: str, read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.utils import handle_arg_string

    assert handle_arg_string(typed) == read
    monkeypatch.chdir(tmp_path)
    (tmp_path / typed).mkdir()
    found, rest = options.split_arguments(options.ExpertOptions, {"experts": read, "revision": read}, [])
    assert found.experts == rest["revision"] == typed


def test_values_stay_values() -> None:
    given, _ = options.split_arguments(options.FewshotOptions, {"shots": 3, "normalize": True, "adapt_seed": 0}, [])
    assert isinstance(given, options.FewshotOptions) and (given.shots, given.normalize, given.adapt_seed) == (3, True, 0)
    labels, _ = options.split_arguments(options.PromptOptions, {"others_label": True}, [])
    assert isinstance(labels, options.PromptOptions) and labels.others_label == "true"
    half, _ = options.split_arguments(options.ExpertOptions, {"alphas": 0.5}, [])
    assert isinstance(half, options.ExpertOptions) and half.alphas == (0.5,)


# ---------------------------------------------------------------------- the response cache
KINDS = (
    options.ExpertOptions,
    options.PromptOptions,
    options.ClsOptions,
    options.FewshotOptions,
    options.PromptVlmOptions,
    options.ClsVlmOptions,
)


def test_every_argument_is_in_the_identity_or_harmless_for_a_reason() -> None:
    taken = {name for cls in (HFLM, HFMultimodalLM) for name in inspect.signature(cls.__init__).parameters} - {"self", "kwargs"}
    assert {"dtype", "max_length", "think_end_token", "add_bos_token", "softmax_dtype", "prefix_token_id"} <= taken
    ours = {name for kind in KINDS for name in kind.model_fields}
    assert set(identity.given_facts(dict.fromkeys(taken | {"load_in_4bit", "anything_else"}, 1))) == (
        (taken | {"load_in_4bit", "anything_else"}) - set(identity.HARMLESS)
    )
    assert ours - set(identity.HARMLESS) == {
        *("labels", "alphas", "form", "others_label", "dispatch", "mix", "dispatch_tokens", "dispatch_image", "hierarchy"),
        *("shots", "granularity", "normalize", "search", "population", "iterations", "adapt_seed", "ties", "choose", "preset"),
    }
    assert all(len(reason) > 10 for reason in identity.HARMLESS.values())
    known = taken | ours | {"device_map", "tp_plan"}  # from_pretrained's, and not of every lm-eval
    assert set(identity.HARMLESS) <= known, "a reason for an argument that nobody takes"


OTHER: dict[str, dict[str, Any]] = {
    "alphas": {"alphas": "0.1+0.2+0.7"},
    "form": {"alphas": "0.2+0.3+0.5", "form": "offset"},
    "others_label": {"others_label": "none"},
    "dispatch": {"dispatch": "generate"},
    "mix": {"mix": "soft"},
    "dispatch_tokens": {"dispatch_tokens": 7},
    "shots": {"shots": 3},
    "granularity": {"granularity": "layer"},
    "normalize": {"normalize": False},
    "search": {"search": "random"},
    "population": {"population": 9},
    "iterations": {"iterations": 3},
    "adapt_seed": {"adapt_seed": 1},
    "ties": {"ties": "reference"},
    "choose": {"choose": "best"},
    "preset": {"preset": "paper"},
    "dtype": {"dtype": "bfloat16", "allow_basis_mismatch": True},
    "max_length": {"max_length": 100},
    "add_bos_token": {"add_bos_token": True},
    "think_end_token": {"think_end_token": "</think>"},
    "chat_template_args": {"chat_template_args": {"mood": "calm"}},
    "softmax_dtype": {"softmax_dtype": "float32"},
    "truncation": {"truncation": True},
}


@pytest.mark.parametrize("name", OTHER)
def test_another_value_is_another_identity(world: Path, name: str) -> None:
    found = [kind for kind in KINDS[:4] if name in kind.model_fields]
    kind = found[0].strategy if found else "prompt"
    plain = {"alphas": "0.2+0.3+0.5"} if kind == "expert" else {}
    before = identity.digest(_make(kind, world, **plain).identity())
    assert identity.digest(_make(kind, world, **plain).identity()) == before
    assert identity.digest(_make(kind, world, **OTHER[name]).identity()) != before


def _relabel(world: Path) -> None:
    for name, label in (("e-math", "code"), ("e-code", "math")):
        card = world / "library" / name / "expert.json"
        card.write_text(json.dumps({**json.loads(card.read_text()), "label": label}))


def _redescribe(world: Path) -> None:
    card = world / "library" / "e-math" / "expert.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "description": "Sums."}))


def _reweigh(world: Path) -> None:
    file = world / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"] * torch.linspace(0.5, 1.5, 32)
    save_file(weights, file, metadata={"format": "pt"})


def _reformat(world: Path) -> None:
    (world / "base" / "dispatch.json").write_text(json.dumps({**FORMAT, "template": "{question}\nkind:"}))


def _retemplate(world: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    tokenizer.save_pretrained(world / "base")


def _regenerate(world: Path) -> None:
    file = world / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "repetition_penalty": 1.3}))


@pytest.mark.parametrize("change", [_relabel, _redescribe, _reweigh, _reformat, _retemplate, _regenerate])
def test_files_that_change_under_one_name_are_another_identity(world: Path, change: Any) -> None:
    before = identity.digest(_make("prompt", world).identity())
    change(world)
    assert identity.digest(_make("prompt", world).identity()) != before


def test_answers_of_other_adaptation_examples_are_not_reused(world: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "responses")
    lm = _make("fewshot", world, **SMALL)
    _evaluate(lm, "models_gen", use_cache=cache)
    again = _evaluate(lm, "models_gen", use_cache=cache)["config"]["t2"]
    assert again["asked"] == 0 and "nothing was chosen now" in again["note"] and again["alphas"] == {}
    other = _evaluate(lm, "models_gen", use_cache=cache, system_instruction="Adapt otherwise.", limit=4)["config"]["t2"]
    assert other["asked"] == 4 and set(other["alphas"]) == {"models_gen"}
