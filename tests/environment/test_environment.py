"""An lm-eval task as an environment: its examples and prompts, and a reward that is exactly lm-eval's."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2eval.environment.environment import Environment, make_task_manager
from t2eval.errors import T2Error, UsageError
from tests.tiny import chat_tokenizer, tiny_tokenizer

TASKS = Path(__file__).parents[1] / "fixtures" / "training"
MANAGER = make_task_manager(TASKS, task="letters_generate")


def environment(name: str, **options: object) -> Environment:
    return Environment(name, task_manager=MANAGER, **options)  # type: ignore[arg-type]


def test_a_generated_task_gives_prompts_targets_and_generation_settings() -> None:
    letters = environment("letters_generate")
    examples = letters.examples("train")
    assert (letters.kind, letters.metric, letters.filter, letters.until, letters.max_new_tokens) == (
        "generate",
        "exact_match",
        "first-letter",
        ["\n"],
        3,
    )
    assert len(examples) == 48
    first = examples[0]
    assert first.prompt == first.doc["question"] and first.target == first.answer == first.doc["answer"]
    assert first.choices is None and first.gold is None
    assert len({example.key for example in examples}) == len(examples)


def test_the_score_is_the_task_s_first_filter_and_first_metric() -> None:
    letters = environment("letters_generate")
    example = letters.examples("train", limit=1)[0]
    wrong = "abcd"[("abcd".index(example.target) + 1) % 4]
    answers = [example.target, f"so: {example.target}!", wrong, "", f"{wrong}{example.target}"]
    assert letters.score_many([(example, answer) for answer in answers]) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert letters.score(example, example.target) == 1.0


def test_a_metric_of_the_task_s_own_is_used_and_its_worked_answer_too() -> None:
    marks = environment("letters_marks")
    example = marks.examples("train", limit=1)[0]
    assert marks.metric == "marks"
    assert [marks.score(example, answer) for answer in (example.doc["answer"], example.doc["answer"].upper(), "z")] == [1.0, 0.5, 0.0]
    assert example.target == f"it is {example.doc['answer']}" and example.answer == f" {example.target}"


def test_shots_never_show_the_document_itself() -> None:
    marks = environment("letters_marks")
    for example in marks.examples("train"):
        assert example.prompt.count("say") == 3 and example.prompt.count(example.doc["question"]) == 1
    assert environment("letters_marks", num_fewshot=0).examples("train")[0].prompt.count("say") == 1


def test_choices_score_by_the_metric_and_requests_are_lm_eval_s() -> None:
    letters = environment("letters_choice")
    example = letters.examples("test", limit=3)[2]
    assert example.index == 2 and example.choices == ("a", "b", "c", "d") and example.gold == example.doc["gold"]
    assert example.requests == tuple((example.doc["question"], choice) for choice in "abcd")
    for choice in range(4):
        likelihoods = [-5.0 + 4 * (index == choice) for index in range(4)]
        assert letters.score_choice(example, likelihoods) == float(choice == example.gold)
    with pytest.raises(T2Error, match="score_choice"):
        letters.score(example, "a")


def test_splits_are_apart_and_the_test_split_is_never_trained_on() -> None:
    keys = {split: {e.key for e in environment("letters_generate").examples(split)} for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert not keys["train"] & keys["validation"] and not keys["validation"] & keys["test"]
    marks = environment("letters_marks")  # lm-eval evaluates it on its validation split
    assert marks.split_source("test") == "validation"
    assert marks.split_source("train") == "train (first half)" and marks.split_source("validation") == "train (second half)"
    train, validation = marks.examples("train"), marks.examples("validation")
    assert len(train) == len(validation) == 24 and not {e.key for e in train} & {e.key for e in validation}
    assert [e.index for e in train] == [e.index for e in marks.examples("train", seed=5)]


def test_adaptation_examples_leave_the_test_split() -> None:
    untrained = environment("letters_untrained")
    assert len(untrained.examples("test")) == 24
    chosen = untrained.examples("adaptation", limit=5, seed=1)
    assert untrained.split_source("adaptation") == "test" and len(chosen) == 5
    left = untrained.examples("test")
    assert len(left) == 19 and not {e.key for e in chosen} & {e.key for e in left}
    assert [e.key for e in environment("letters_untrained").examples("adaptation", limit=5, seed=1)] == [e.key for e in chosen]


def test_a_limit_is_a_seeded_sample_of_training_data_and_the_head_of_test_data() -> None:
    letters = environment("letters_generate")
    assert [e.index for e in letters.examples("test", limit=4)] == [0, 1, 2, 3]
    one, two = ([e.index for e in letters.examples("train", limit=8, seed=seed)] for seed in (0, 1))
    assert len(one) == 8 and one == sorted(one) and one != two


def test_a_chat_template_wraps_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    letters = Environment("letters_generate", task_manager=MANAGER, tokenizer=tokenizer, apply_chat_template=True)
    example = letters.examples("train", limit=1)[0]
    assert example.prompt == f"<user>{example.doc['question']}<assistant>"


def test_mistakes_are_told_in_one_message() -> None:
    with pytest.raises(UsageError, match=r"Unknown task 'letters_generat'\. Did you mean 'letters_generate'"):
        environment("letters_generat")
    with pytest.raises(T2Error, match="no training split.*its dataset has: test"):
        environment("letters_untrained").examples("train")
    with pytest.raises(T2Error, match="runs model-written programs without protection"):
        environment("letters_unsafe")
    with pytest.raises(UsageError, match="is not a folder"):
        make_task_manager(TASKS / "nowhere")


def test_data_that_cannot_be_had_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'somebody/letters' on the Hub")

    monkeypatch.setattr(MANAGER, "load", unreachable)
    with pytest.raises(T2Error, match="Couldn't reach 'somebody/letters'.*HF_HUB_OFFLINE"):
        environment("letters_generate")


def _begun(template: str | None, **options: object) -> Environment:
    chat = {"tokenizer": chat_tokenizer(template), "apply_chat_template": True} if template else {}
    return environment("letters_begun", **chat, **options)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize(
    ("template", "begins", "ends"),
    [
        (None, "Say the letter.\n\n", "{question}\nIt is"),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSay the letter.<|eot_id|>",
            "{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt is",
        ),
        ("mistral", "<s>[INST] Say the letter.\n\n", "{question}[/INST] It is"),
    ],
)
def test_a_begun_answer_is_gone_on_with(template: str | None, begins: str, ends: str, shots: int) -> None:
    for example in _begun(template, num_fewshot=shots).examples("train", limit=5):
        assert example.prompt.startswith(begins) and example.prompt.endswith(ends.format(question=example.doc["question"]))
        assert example.prompt.count("It is") == 1 + shots == example.prompt.count(" say ")
        assert example.answer == f" {example.target}"  # as in a worked example: "It is b"
        if shots:
            assert example.prompt.count("It is ") == shots


def test_a_task_that_asks_several_times_is_scored_by_its_own_vote() -> None:
    begun = _begun(None)
    example = begun.examples("test", limit=1)[0]
    wrong = "abcd"[("abcd".index(example.target) + 1) % 4]
    assert begun.score_many([(example, f" {example.target}."), (example, wrong), (example, "")]) == [1.0, 0.0, 0.0]
    assert example.target == begun.examples("test")[0].doc["answer"]


def test_shots_of_scored_documents_are_those_of_lm_eval() -> None:
    ours = _begun(None, num_fewshot=2).examples("test")
    task = MANAGER.load(["letters_begun"])["tasks"]["letters_begun"]
    task.set_config(key="num_fewshot", value=2)
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    assert [example.prompt for example in ours] == [instance.args[0] for instance in task.instances]


def test_generation_settings_of_a_run_replace_the_task_s() -> None:
    given = environment("letters_generate", generation_kwargs={"until": ["!"], "max_new_tokens": 7})
    assert (given.until, given.max_new_tokens) == (["!"], 7)


def test_arguments_of_the_chat_template_are_passed_on() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ mood }}{% for m in messages %}<{{ m.content }}>{% endfor %}"
    chat = {"tokenizer": tokenizer, "apply_chat_template": True}
    calm = environment("letters_generate", **chat, chat_template_args={"mood": "calm"})
    assert calm.examples("test", limit=1)[0].prompt.startswith("calm<")


def test_a_sample_larger_than_the_split_is_the_split() -> None:
    letters = environment("letters_generate")
    assert len(letters.examples("adaptation", limit=1000)) == len(letters.examples("adaptation")) == 16
