"""Encoding: texts as token ids, split, cut and begun exactly as lm-eval's HFLM does it."""

from __future__ import annotations

from typing import Any

from t2eval.errors import T2Error

_LENGTH_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")
_NO_LIMIT = 10**29  # tokenizers without a limit say int(1e30)
_DEFAULT_LENGTH = 2048


def context_length(config: Any, tokenizer: Any) -> int:
    """The model's longest sequence in tokens, where HFLM finds it: the text model's config, else the tokenizer, else 2048."""
    text = getattr(config, "text_config", None) or config
    for name in _LENGTH_NAMES:
        if (value := getattr(text, name, None)) is not None:
            return int(value)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and limit < _NO_LIMIT else _DEFAULT_LENGTH


class Encoding:
    """A tokenizer as HFLM uses it.

    Args:
        tokenizer: the model's.
        add_bos_token: HFLM's argument: whether special tokens are added; None leaves that to the tokenizer.
    """

    def __init__(self, tokenizer: Any, add_bos_token: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self._special = {} if add_bos_token is None else {"add_special_tokens": add_bos_token}

    @property
    def first_token(self) -> int:
        """What stands before a text that has nothing before it.

        Raises:
            T2Error: the tokenizer has no token for that.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise T2Error(
            "The tokenizer has neither a token that begins a text nor one that ends it, and a text with nothing before it needs one: "
            "set bos_token or eos_token in its tokenizer_config.json."
        )

    @property
    def padding(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def text(self, text: str) -> list[int]:
        """The token ids of a text that begins a sequence; special tokens are not added where it begins with one of its own."""
        return self._encoded(text, getattr(self.tokenizer, "bos_token", None))

    def _encoded(self, text: str, beginning: str | None) -> list[int]:
        special = {"add_special_tokens": False} if beginning and text.startswith(beginning) else self._special
        ids: list[int] = self.tokenizer(text, **special)["input_ids"]
        return ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The token ids of a context and of what follows it. Spaces that end the context go to the continuation."""
        if not context:
            ids: list[int] = self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
            return (ids[:1], ids[1:]) if len(ids) > 1 and ids[0] == self.first_token else ([self.first_token], ids)
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        beginning = self.tokenizer.decode([self.first_token])  # the end token's text where there is no beginning token
        start = self._encoded(context, beginning) if context else [self.first_token]
        whole = self._encoded(context + continuation, beginning)
        return start, whole[len(start) :]
