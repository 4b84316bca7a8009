"""Together: requests that several z' answer, in lm-eval's own batches, one z' a sequence.

lm-eval sorts and batches requests by itself, so a row of its batches is known by its tokens. Two requests with the same tokens and
another z' each cannot be told apart: such ones are answered apart, as everything is whose z' a batch cannot share.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from t2eval.environment import harness
from t2eval.errors import T2Error
from t2eval.svf.attachment import attached
from t2eval.svf.cost import Work, merging_is_cheaper, together_is_cheaper
from t2eval.svf.hooks import SequencesUnseen

_log = logging.getLogger(__name__)
Row = tuple[int, ...]
AUTOMATIC = 32
"""Sequences of a batch of the first pass where lm-eval finds the size of its own by itself (`--batch_size auto`)."""
_SAMPLE = 16
"""Requests by which the mean length of a prompt is told."""


class Ambiguous(Exception):
    """Two requests of the same tokens with another z' each."""


class Rows:
    """Which z' answers each row of lm-eval's batches.

    Args:
        scales: the z', (r,) by matrix path each; a missing path is ones.
        numbers: for each request its place among them.
    """

    def __init__(self, scales: Sequence[Mapping[str, Tensor]], numbers: Sequence[int]) -> None:
        self._scales, self._numbers = scales, numbers
        self._of: dict[Row, int] = {}
        self._paths = sorted({path for z in scales for path in z})

    @property
    def known(self) -> bool:
        """Whether the rows' tokens have been told."""
        return bool(self._of)

    def tell(self, rows: Sequence[Row]) -> None:
        """The tokens of each request.

        Raises:
            Ambiguous: two requests with the same tokens and another z' each.
        """
        for row, number in zip(rows, self._numbers, strict=True):
            if self._of.setdefault(row, number) != number:
                raise Ambiguous

    def of(self, rows: Sequence[Row], bases: Mapping[str, Any]) -> dict[str, Tensor]:
        """z' of the rows of a batch, (rows, r) by matrix path."""
        if missing := [row for row in rows if row not in self._of]:
            raise T2Error(
                f"lm-eval asks the model for a prompt of {len(missing[0])} tokens that is none of its requests', so which expert answers "
                "it is not known. Is this a version of lm-eval that `t2 doctor` knows?"
            )
        numbers = [self._of[row] for row in rows]
        distinct = sorted(set(numbers))
        places = torch.tensor([distinct.index(number) for number in numbers])  # (rows,)
        found = {}
        for path in self._paths:
            ones = torch.ones(bases[path].rank)
            found[path] = torch.stack([self._scales[number].get(path, ones) for number in distinct])[places]  # (rows, r)
        return found


def without_padding(tokens: Sequence[int]) -> Row:
    """A row of tokens without the noughts that end it, with which lm-eval fills a batch up."""
    end = len(tokens)
    while end and tokens[end - 1] == 0:
        end -= 1
    return tuple(tokens[:end])


class Together:
    """What a strategy needs to answer requests of several z' in common batches."""

    rows_by_tokens: ClassVar[bool] = True
    """Whether a row of a batch is known by its tokens."""
    through_hooks: bool

    # what a strategy and its lm-eval class give
    model: Any
    adapted: Any
    max_length: int
    max_gen_toks: int
    truncation: Any
    batch_size_per_gpu: Any
    tok_encode: Any
    tok_batch_encode: Any
    scale: Callable[[Any], Any]
    _by_lm_eval: Callable[..., list[Any]]

    _rows: dict[str, Rows] = {}  # by lm-eval's method, while requests of several z' are answered together
    _sequences_unseen = False  # whether the model cannot have one z' a sequence

    def limit_of(self, request: Any) -> int:
        """The most tokens of a request's answer."""
        return int(harness.generation_settings(request.args[1], int(self.max_gen_toks))["max_gen_toks"])

    # ------------------------------------------------------------------ which way
    def _work(self, method: str, requests: Sequence[Any]) -> Work:
        """What answering some requests takes, their mean length from a sample of them."""
        sample = requests[:: max(1, len(requests) // _SAMPLE)]
        generates = method == "generate_until"
        texts = [request.args[0] if generates else "".join(request.args) for request in sample]
        prompt = sum(len(self.tok_encode(text)) for text in texts) / len(texts)
        return Work(prompt, self.limit_of(sample[0]) if generates else 0, self._batch() or AUTOMATIC)

    def _batch(self) -> int | None:
        """The most sequences of a batch; None where lm-eval finds it."""
        given = self.batch_size_per_gpu
        return given if isinstance(given, int) and given > 0 else None

    def _briefly(self, method: str, requests: Sequence[Any]) -> bool:
        """Whether one of several z' answers so little that a merge costs more than its hooks."""
        if self.through_hooks or method == "loglikelihood_rolling" or attached(self.model) is None:
            return False
        return not merging_is_cheaper(self.adapted.shapes, len(requests), self._work(method, requests), self.adapted.device_type)

    def _shared(self, method: str, requests: Sequence[Any], keys: Sequence[Hashable]) -> list[list[int]]:
        """The requests that several z' answer faster in common batches, a list for what one batch can hold; the rest goes z' by z'."""
        distinct = set(keys)
        if len(distinct) < 2 or not self.rows_by_tokens or self._sequences_unseen or method == "loglikelihood_rolling":
            return []
        if method == "loglikelihood" and self._batch() is None:  # lm-eval finds the size by prompts of its own
            return []
        if not all(key is None or isinstance(self.scale(key), Mapping) for key in distinct):  # PEFT adapters
            return []
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]) if method == "generate_until" else "", []).append(index)
        found = []
        for indices in kinds.values():
            counts = list(Counter(keys[index] for index in indices).values())
            work = self._work(method, [requests[index] for index in indices])
            merges = not self.through_hooks
            if len(counts) > 1 and together_is_cheaper(self.adapted.shapes, counts, work, self.adapted.device_type, merges=merges):
                found.append(indices)
        return found

    # ------------------------------------------------------------------ in lm-eval's batches
    def _answer_together(
        self, method: str, requests: Sequence[Any], keys: Sequence[Hashable], indices: list[int], disable_tqdm: bool
    ) -> dict[int, Any]:
        """Answers by place in `requests`; none where they cannot share batches."""
        if self._sequences_unseen:
            return {}
        asked = [requests[index] for index in indices]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys[index] for index in indices))}
        scales: list[Any] = [{} if key is None else self.scale(key) for key in numbers]
        rows = Rows(scales, [numbers[keys[index]] for index in indices])
        self._rows = {method: rows}
        try:
            if method == "generate_until":
                rows.tell([self._row(request) for request in asked])
            return dict(zip(indices, self._by_lm_eval(method, asked, disable_tqdm), strict=True))
        except Ambiguous:
            return {}
        except SequencesUnseen as error:  # a mixture of experts whose maps see some of the tokens
            _log.info("%s Requests are answered one z' after the other.", error)
            self._sequences_unseen = True
            return {}
        finally:
            self._rows = {}

    def _row(self, request: Any) -> Row:
        """The tokens by which lm-eval asks for an answer."""
        room = self.max_length - self.limit_of(request)
        ids, _ = self.tok_batch_encode([request.args[0]], left_truncate_len=room, truncation=self.truncation)
        return tuple(ids[0].tolist())

    def _loglikelihood_tokens(self, requests: list[Any], *arguments: Any, **named: Any) -> Any:
        rows = self._rows.get("loglikelihood")
        if rows is not None and not rows.known:
            most = self.max_length + 1
            rows.tell([without_padding((context + more)[-most:][:-1]) for _, context, more in requests])
        return super()._loglikelihood_tokens(requests, *arguments, **named)  # type: ignore[misc]

    def _under(self, method: str, rows: Sequence[Row]) -> contextlib.AbstractContextManager[Any]:
        """One z' a row, where rows have z' of their own."""
        known = self._rows.get(method)
        return contextlib.nullcontext() if known is None else self.adapted.per_sequence(known.of(rows, self.adapted.bases))
