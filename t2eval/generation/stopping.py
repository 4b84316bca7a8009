"""Stopping: when a sequence has ended, and the text that a task grades of it.

A sequence ends with an end token, or with the token that completes a stop string: wherever in a token the string begins, over however many
tokens it goes, and also where a token holds only some bytes of a letter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from t2eval.generation.completion import Stopped
from t2eval.generation.settings import GenerationSettings

_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What decodes from some bytes of a letter."""
_MARGIN = 8
"""Tokens before the longest stop string that are decoded with it: the first ones of a piece may lose a space or half a letter."""


class Stopping:
    """Ends of sequences under given settings.

    Args:
        tokenizer: decodes.
        settings: stop strings, limit, and the token that ends thoughts.
        ends: token ids that end a sequence.
    """

    def __init__(self, tokenizer: Any, settings: GenerationSettings, ends: Collection[int]) -> None:
        self.tokenizer, self.settings, self.ends = tokenizer, settings, frozenset(ends)
        end_text = tokenizer.decode([tokenizer.eos_token_id]) if tokenizer.eos_token_id is not None else ""
        # As HFLM has it, the end token's text ends an answer also where ordinary tokens spell it.
        self.strings = [text for text in dict.fromkeys([*settings.until, end_text]) if text]
        self._last_letters = {text[-1] for text in self.strings}
        self._reach = max((len(text.encode()) for text in self.strings), default=0) + _MARGIN
        self._may_complete: dict[int, bool] = {}

    def stopped(self, ids: Sequence[int]) -> Stopped | None:
        """Why a sequence ends with its last token; None where it goes on. To be asked after each token."""
        last = ids[-1]
        if last in self.ends:
            return "end"
        if self._completes(last):
            text = self.tokenizer.decode(ids[-self._reach :])
            if any(stop in text for stop in self.strings):
                return "stop"
        return "length" if len(ids) >= self.settings.max_new_tokens else None

    def _completes(self, token: int) -> bool:
        """Whether a token can be the last of a stop string; most cannot, and only the others are worth a decoding of what stands before."""
        if token not in self._may_complete:
            piece = self.tokenizer.decode([token])
            self._may_complete[token] = not piece or any(
                letter in piece or letter.isspace() or _BROKEN in piece for letter in self._last_letters
            )
        return self._may_complete[token]

    def text(self, ids: Sequence[int]) -> str:
        """What HFLM hands to the task: no special tokens, nothing up to the end of the thoughts, nothing from the first stop string on."""
        think = self.settings.think_end_token
        kept = list(ids)
        if isinstance(think, int) and think in kept:
            kept = kept[len(kept) - kept[::-1].index(think) :]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        if isinstance(think, int):
            text = text.lstrip()
        elif think:
            text = text.split(think)[-1].lstrip()
        for stop in self.strings:
            text = text.split(stop)[0]
        return text
