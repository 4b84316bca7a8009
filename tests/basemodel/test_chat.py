"""Chat prompts: every message reaches the model, whatever the template thinks of system messages."""

from __future__ import annotations

import pytest

from t2eval.basemodel.chat import tokenizer_chat
from t2eval.errors import T2Error, UsageError
from tests.tiny import chat_tokenizer, tiny_tokenizer

SYSTEM = {"role": "system", "content": "Be brief.\n\n"}
USER = {"role": "user", "content": "Why?"}
BEGUN = {"role": "assistant", "content": "Because"}


@pytest.mark.parametrize(
    ("template", "history", "expected"),
    [
        ("llama3", [USER], "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"),
        (
            "llama3",
            [SYSTEM, USER],
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>",
        ),
        ("mistral", [USER], "<s>[INST] Why?[/INST]"),
        ("mistral", [SYSTEM, USER], "<s>[INST] Be brief.\n\n\n\nWhy?[/INST]"),
        ("strict-mistral", [SYSTEM, USER], "<s>[INST] Be brief.\n\nWhy? [/INST]"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_the_prompt(template: str, history: list[dict[str, str]], expected: str, begun: bool) -> None:
    chat = tokenizer_chat(chat_tokenizer(template))
    answer = "<|start_header_id|>assistant<|end_header_id|>\n\n" if template == "llama3" else " " if begun else ""
    if begun:
        expected = expected.replace("\n\n\n\n", "\n\n")  # this template itself would lose the system message here
    for _ in range(2):  # the second time it is known what the template does
        assert chat([*history, BEGUN] if begun else history, add_generation_prompt=not begun) == expected + answer + "Because" * begun
    assert SYSTEM["content"] == "Be brief.\n\n" and USER["content"] == "Why?"


def test_worked_examples_keep_the_instruction_once() -> None:
    turns = [USER, {"role": "assistant", "content": "So."}, USER]
    for template in ("llama3", "mistral", "strict-mistral"):
        for begun in (False, True):
            chat = tokenizer_chat(chat_tokenizer(template))
            text = chat([SYSTEM, *turns, BEGUN] if begun else [SYSTEM, *turns], add_generation_prompt=not begun)
            assert text.count("Be brief.") == 1 and text.count("Why?") == 2 and text.endswith("Because") == begun


def test_content_in_parts_is_kept_in_parts() -> None:
    from t2eval.basemodel.chat import folded

    image = {"type": "image"}
    assert folded([SYSTEM, {"role": "user", "content": [image]}]) == [
        {"role": "user", "content": [{"type": "text", "text": "Be brief.\n\n"}, image]}
    ]


def test_messages_that_a_template_cannot_show_are_one_error() -> None:
    with pytest.raises(T2Error, match=r"cannot show the messages \(user, user\): user and assistant take turns"):
        tokenizer_chat(chat_tokenizer("mistral"))([USER, USER])


@pytest.mark.parametrize("history", [[USER], [SYSTEM, USER]])
def test_a_missing_template_is_one_short_message(history: list[dict[str, str]]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.name_or_path = "someone/base"
    with pytest.raises(UsageError) as caught:
        tokenizer_chat(tokenizer)(history)
    assert str(caught.value) == (
        "The model someone/base has no chat template, and prompts in one were asked for. Use its instruction-tuned version, or leave "
        "apply_chat_template out."
    )
