"""Strategy: the mix-in that turns an lm-eval class over a transformers model into one with a first pass.

A class of ours is `class X(Strategy, HFLM)`: requests come in, `keys` says which z' answers each of them, requests are grouped by that,
z' is merged once a group, and the lm-eval class answers the group as it always does. The base weights are the same bits afterwards,
also after an exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from t2eval.basemodel.chat import Chat
from t2eval.basemodel.load import embedded_library_dir, model_source
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.expert.library import load_library
from t2eval.generation.first_pass import Encoding, Meter, Runner
from t2eval.models.launch import command_line_flags, one_message
from t2eval.models.options import Options, split_arguments
from t2eval.paths import EMBEDDED, is_embedded
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.strategies.fewshot import Ranks
from t2eval.svf.adapted import Adapted, attach, attached

_log = logging.getLogger(__name__)
_ROWS_CPU, _ROWS_ACCELERATOR = 80, 32


class Strategy:
    """See the module's text. Subclasses set `OPTIONS`, and define `prepare`, `keys`, `scale` and `report`."""

    OPTIONS: ClassVar[type[Options]] = Options
    EMBEDDED: ClassVar[str] = EMBEDDED
    rows_by_tokens: ClassVar[bool] = True
    """Whether a row of a batch is known by its tokens."""
    options: Any

    # what the lm-eval class gives
    model: Any
    tokenizer: Any
    config: Any
    device: Any
    backend: str
    pretrained: Any
    revision: Any
    truncation: Any
    max_length: int
    max_gen_toks: int
    batch_size_per_gpu: Any
    cache_hook: Any
    tok_encode: Any
    chat_template_args: dict[str, Any]
    tok_batch_encode: Any
    _encode_pair: Any
    _rank: int
    _world_size: int

    def __init__(self, pretrained: Any = None, **arguments: Any) -> None:
        with one_message():
            order = type(self).__mro__
            self.options, rest = split_arguments(self.OPTIONS, arguments, order[order.index(Strategy) + 1 :])
            self._embedded = pretrained is None or pretrained == self.EMBEDDED
            if not self._embedded and self.options.experts is None:
                raise UsageError("A base model of your own needs experts= in model_args: a library, or expert directories joined by '+'.")
            if pretrained is None or isinstance(pretrained, str) and is_embedded(pretrained):
                pretrained = model_source(pretrained or self.EMBEDDED)
            if rest.get("peft") or rest.get("delta"):
                raise UsageError("peft= and delta= cannot be combined with experts: merge the adapter into the base model first.")
            if str(rest.get("device", "cuda")).startswith("cuda") and not torch.cuda.is_available():
                rest["device"] = "cpu"
            include_path, self.num_fewshot = command_line_flags()
            self.include_path: str | None = self.options.include_path or include_path
            self.experts: list[Expert] = load_library(self._library())
            self._load_base(pretrained, rest)
            self._set_ranks()
            self.first_pass, self.second_pass = Meter(), Meter()
            self._totals: list[dict[str, Any]] = []
            self._chat = False
            self._renderer = Chat(super().apply_chat_template)  # type: ignore[misc]
            self._row_z: dict[tuple[int, ...], Mapping[str, Tensor]] = {}
            self._attach()
            self.prepare()

    # ------------------------------------------------------------------ what a strategy defines
    def prepare(self) -> None:
        """Check options against the library."""

    def keys(self, requests: Sequence[Any]) -> list[Hashable]:
        """The first pass: for each request the key of the z' that answers it; None is the base weights."""
        raise NotImplementedError

    def scale(self, key: Hashable) -> Mapping[str, Tensor]:
        """z' of a key that `keys` gave."""
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """What the strategy adds to `config.t2`; on data-parallel runs, called on every rank."""
        return {}

    # ------------------------------------------------------------------ requests
    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood_rolling", requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("generate_until", requests, disable_tqdm)

    def _answer(self, method: str, requests: list[Any], disable_tqdm: bool) -> list[Any]:
        with one_message():
            keys = self.keys(requests)
            groups: dict[Hashable, list[int]] = {}
            for index, key in enumerate(keys):
                groups.setdefault(key, []).append(index)
            answers: list[Any] = [None] * len(requests)
            with self.second_pass.timed(), self._alone():
                for key, indices in groups.items():
                    with contextlib.nullcontext() if key is None else self.applied(self.scale(key)):
                        parent = getattr(super(), method)
                        found = parent([requests[index] for index in indices], disable_tqdm=disable_tqdm)
                    for index, answer in zip(indices, found, strict=True):
                        answers[index] = answer
            self._share()
            return answers

    @contextlib.contextmanager
    def applied(self, z: Mapping[str, Tensor]) -> Iterator[None]:
        """The model with z': merged, or through the hooks where weights are quantised or z' is used too briefly to be worth a merge."""
        if not self.through_hooks:
            with self.adapted.fast(z):
                yield
            return
        self.adapted.set_z(z)
        try:
            yield
        finally:
            self.adapted.set_z(None)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Groups differ between ranks, so nothing inside a group may wait for another rank (HFLM gathers batch sizes and windows)."""
        size = self._world_size
        self._world_size = 1
        try:
            yield
        finally:
            self._world_size = size

    def _model_call(self, inps: Tensor, *arguments: Any, **named: Any) -> Tensor:
        self.second_pass.tokens += inps.numel()
        return super()._model_call(inps, *arguments, **named)  # type: ignore[misc, no-any-return]

    def _model_generate(self, context: Tensor, *arguments: Any, **named: Any) -> Tensor:
        mask = named.get("attention_mask")
        mask = torch.ones_like(context) if mask is None else mask
        scope: Any = contextlib.nullcontext()
        if self._row_z:
            rows = [tuple(ids[keep.bool()].tolist()) for ids, keep in zip(context, mask, strict=True)]
            each = [self._row_z[row] for row in rows]
            scope = self.adapted.per_sequence({path: torch.stack([z[path] for z in each]) for path in each[0]})
        with scope:
            made: Tensor = super()._model_generate(context, *arguments, **named)  # type: ignore[misc]
        self._count(mask, made)
        return made

    def _count(self, mask: Tensor, made: Tensor) -> None:
        """Count the tokens of a batch's prompts and answers."""
        answer = made[:, mask.shape[1] :]
        self.second_pass.tokens += int(mask.sum()) + int((answer != self.tokenizer.pad_token_id).sum())

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        self._chat = True
        return self._renderer(chat_history, add_generation_prompt)

    # ------------------------------------------------------------------ the first pass's model
    @property
    def adapted(self) -> Adapted:
        """The model's scaling as it is now: another lm-eval object on the same model may have put on one of more matrices."""
        found = attached(self.model)
        assert found is not None
        return found

    def runner(self) -> Runner:
        """The model for batches of the first pass, outside of lm-eval's response cache."""
        given = self.batch_size_per_gpu
        rows = _ROWS_CPU if str(self.device).startswith("cpu") else _ROWS_ACCELERATOR
        return Runner(self.model, self.tokenizer, self.first_pass, max(rows, given) if isinstance(given, int) else rows)

    def encoding(self) -> Encoding:
        return Encoding(self.tok_encode, self._encode_pair, int(self.max_length), self._chat_prompt if self._chat else None)

    def _chat_prompt(self, user: str, lead: str) -> str:
        history = [{"role": "user", "content": user}]
        if not lead:
            return self.apply_chat_template(history)
        return self.apply_chat_template([*history, {"role": "assistant", "content": lead.lstrip()}], add_generation_prompt=False)

    @property
    def reader_of_prompts(self) -> Any:
        """What renders a chat: the tokenizer."""
        return self.tokenizer

    @property
    def skills(self) -> list[Expert]:
        """The library without its classification expert (unless that is all there is)."""
        found = [expert for expert in self.experts if expert.label != DISPATCH_LABEL]
        return found or self.experts

    def ranks(self) -> Ranks:
        """The processes that share a search; one alone where lm-eval's response cache may skip calls on some ranks."""
        size = int(self._world_size)
        return Ranks(int(self._rank), size, self._gather) if size > 1 and self._collective() else Ranks()

    # ------------------------------------------------------------------ loading
    def _library(self) -> Any:
        if self.options.experts is not None:
            return self.options.experts
        return self.embedded_library()

    def embedded_library(self) -> Path | list[Path]:
        """The folder of its experts, or several."""
        return Path(embedded_library_dir(0))

    def _load_base(self, pretrained: Any, rest: dict[str, Any]) -> None:
        try:
            super().__init__(pretrained=pretrained, **rest)  # type: ignore[call-arg]
        except (OSError, HFValidationError) as error:
            first = str(error).strip().splitlines()[0]
            raise T2Error(
                f"The base model {pretrained!r} could not be loaded: {first} Check the name or path; if the hub cannot be reached, "
                "download the model where it can and give its folder, or leave pretrained= out to use the embedded base model."
            ) from error
        if self.backend != "causal":
            raise UsageError(f"{pretrained!r} is an encoder-decoder model; experts scale decoder-only models.")

    def _set_ranks(self) -> None:
        """HFLM sets rank and world size on GPUs only; on CPUs both processes would evaluate everything."""
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and accelerator.num_processes > 1 and self._world_size == 1:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _attach(self) -> None:
        self.experts = [expert.remapped(self.model) for expert in self.experts]
        paths = sorted({path for expert in self.experts for path in expert.z})
        known = attached(self.model)  # one scaling a model object, however many lm-eval objects share it
        if known is None or not set(paths) <= set(known.paths):
            if known is not None:
                known.detach()
                paths = sorted({*paths, *known.paths})
            attach(self.model, paths=paths)
        self.adapted.set_z(None)
        for expert in self.experts:
            expert.check(self.adapted, self.options.allow_basis_mismatch)
        self.through_hooks = not self.adapted.mergeable

    # ------------------------------------------------------------------ lm-eval's response cache
    def identity(self) -> str:
        """A hash of everything that decides an answer besides the request: base, experts, strategy and options."""
        options = self.options.model_dump(mode="json", exclude={"experts"})
        named = self.pretrained if isinstance(self.pretrained, str) else getattr(self.config, "_name_or_path", "")
        what = [self.options.strategy, str(named), str(self.revision), [expert.sha256 for expert in self.experts], options]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def set_cache_hook(self, cache_hook: Any) -> None:
        """lm-eval keys its response cache by the request alone: each identity gets a table of its own in the file."""
        if cache_hook.dbdict is not None:
            table = f"t2_{self.identity()}"
            cache_hook.dbdict.tablename = table
            cache_hook.dbdict.conn.execute(f'CREATE TABLE IF NOT EXISTS "{table}" (key TEXT PRIMARY KEY, value BLOB)')
            cache_hook.dbdict.conn.commit()
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def _collective(self) -> bool:
        return self.cache_hook.dbdict is None

    # ------------------------------------------------------------------ the record
    def _gather(self, thing: Any) -> list[Any]:
        found: list[Any] = [None] * int(self._world_size)
        torch.distributed.all_gather_object(found, thing)
        return found

    def _share(self) -> None:
        """Give every rank all ranks' records, while all of them are here."""
        own = {"report": self.report(), "first": vars(self.first_pass).copy(), "second": vars(self.second_pass).copy()}
        self._totals = self._gather(own) if self._world_size > 1 and self._collective() else [own]

    def merge_reports(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """One report from those of all ranks."""
        return reports[0]

    def t2_info(self) -> dict[str, Any]:
        """`config.t2` of lm-eval's results file. Seconds are the slowest rank's, tokens those of all ranks."""
        totals = self._totals or [{"report": self.report(), "first": vars(Meter()), "second": vars(Meter())}]

        def total(name: str) -> dict[str, float | int]:
            return Meter(max(each[name]["seconds"] for each in totals), sum(each[name]["tokens"] for each in totals)).record()

        return {
            "strategy": self.options.strategy,
            "experts": [
                {"name": expert.name, "label": expert.label, "sha256": expert.sha256, "basis_fingerprint": _short(expert)}
                for expert in self.experts
            ],
            "dispatch": {},
            "alphas": {},
            "adaptation": {},
            **self.merge_reports([each["report"] for each in totals]),
            "first_pass": total("first"),
            "second_pass": total("second"),
        }

    def get_model_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super().get_model_info()  # type: ignore[misc]
        scales = sum(parameter.numel() for parameter in self.adapted.trainable().values())
        if isinstance(info.get("model_num_parameters"), int) and info["model_num_parameters"] > scales:
            info["model_num_parameters"] -= scales
        return {**info, "t2": self.t2_info()}


def _short(expert: Expert) -> str:
    """The basis fingerprint of an expert's card as one hash."""
    return hashlib.sha256(json.dumps(expert.card.basis_fingerprint, sort_keys=True).encode()).hexdigest()[:16]
