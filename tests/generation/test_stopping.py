"""Stopping: after the token that completes a stop string, however tokens and letters lie; and the text that is graded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.utils import postprocess_generated_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.generation.stopping import Stopping
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = "So the answer is 12.\n\nQuestion: what is 3 + 4? née Ärger 世界 🙂🙃 ####\n#### 7</s>"


def _merging() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with tokens of several letters, and some of half a letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False)
    tokenizer.train_from_iterator([TEXT * 3, "世🙂世🙃Question: 12.\n\nQ"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def _spaced() -> PreTrainedTokenizerFast:
    """As sentencepiece's: a space is a part of the next token, and the first token loses it."""
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in ["<eos>", "▁", "▁a", "a", "b", "▁b", "ab", "\n", "▁\n", "Q", ":"]], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


TOKENIZERS = {"bytes": tiny_tokenizer(), "merging": _merging(), "spaced": _spaced()}


def _walk(stopping: Stopping, ids: list[int]) -> tuple[int, str | None]:
    """After how many tokens a sequence ends, and why."""
    for count in range(1, len(ids) + 1):
        if (why := stopping.stopped(ids[:count])) is not None:
            return count, why
    return len(ids), None


def _plain(tokenizer: PreTrainedTokenizerFast, stops: list[str], ids: list[int]) -> tuple[int, str | None]:
    """The same by decoding everything after each token."""
    for count in range(1, len(ids) + 1):
        if ids[count - 1] == tokenizer.eos_token_id:
            return count, "end"
        if any(stop in tokenizer.decode(ids[:count]) for stop in stops if stop):
            return count, "stop"
    return len(ids), None


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "stop",
    [
        "\n\nQuestion:",
        "Q",
        "n: w",
        "世界",
        "界",
        "🙂",
        "née",
        "é",
        " Ä",
        "####\n####",
        "12",
        ".",
        " ",
        "\n",
        "a b",
        "is 12.\n\nQuestion: what is 3",
    ],
)
def test_an_answer_ends_with_the_token_that_completes_the_string(name: str, stop: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer("a b ab\n bQ: a" if name == "spaced" else TEXT, add_special_tokens=False)["input_ids"]
    stopping = Stopping(tokenizer, GenerationSettings(1000, (stop, "")), {tokenizer.eos_token_id})
    assert _walk(stopping, ids) == _plain(tokenizer, [stop], ids)
    if stop in TEXT and name != "spaced":
        assert _walk(stopping, ids)[1] == "stop"


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(TOKENIZERS)))
def test_any_tokens_and_any_string(data: st.DataObject, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=24))
    whole = tokenizer.decode(ids)
    start = data.draw(st.integers(0, max(0, len(whole) - 1)))
    stop = whole[start : start + data.draw(st.integers(1, 6))]
    stops = [stop] if stop and "\N{REPLACEMENT CHARACTER}" not in stop else ["x"]
    stopping = Stopping(tokenizer, GenerationSettings(1000, tuple(stops)), {tokenizer.eos_token_id})
    assert _walk(stopping, ids) == _plain(tokenizer, [*stops, tokenizer.eos_token], ids)


def test_the_limit_ends_an_answer_and_an_end_token_wins() -> None:
    stopping = Stopping(tiny_tokenizer(), GenerationSettings(3), {257, 9})
    assert [stopping.stopped(ids) for ids in ([1], [1, 2], [1, 2, 3], [9], [1, 2, 9])] == [None, None, "length", "end", "end"]


THOUGHTS = ["a maybe\n\n</think> so b\n\nc", "</think></think> x", "no thoughts\n\nat all", "a</think>", "<eos>a</think> b <eos>"]


@pytest.mark.parametrize("text", THOUGHTS)
@pytest.mark.parametrize("think", [None, "</think>", "k>"])
def test_the_text_is_what_lm_eval_hands_to_the_task(text: str, think: str | None) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stopping = Stopping(tokenizer, GenerationSettings(99, ("\n\n", ""), think_end_token=think), {257})
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert stopping.text(ids) == postprocess_generated_text(decoded, ["\n\n", "", "<eos>"], think)


def test_thoughts_end_with_the_last_token_of_a_given_id() -> None:
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer("old")["input_ids"], 7, *tokenizer("older")["input_ids"], 7, *tokenizer("  new\n\nrest")["input_ids"]]
    stopping = Stopping(tokenizer, GenerationSettings(99, ("\n\n",), think_end_token=7), {257})
    assert stopping.text(ids) == "new"
    assert Stopping(tokenizer, GenerationSettings(99, think_end_token=250), {257}).text(ids[:3]) == "old"


@pytest.mark.parametrize("static", [False, True])
def test_the_tokens_of_a_completion_end_with_its_stop_string(static: bool) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = tokenizer("ab")["input_ids"]
    whole = Engine(model, tokenizer, batch_size=1).complete([prompt], GenerationSettings(12))[0]
    stop = tokenizer.decode(whole.ids[4:6])
    cut = Engine(model, tokenizer, batch_size=1, static=static).complete([prompt], GenerationSettings(12, (stop,)))[0]
    assert cut.ids == whole.ids[: len(cut.ids)] and len(cut.ids) == len(cut.log_probs) <= 6
    assert tokenizer.decode(cut.ids).endswith(stop) and stop not in cut.text and cut.stopped == "stop"
