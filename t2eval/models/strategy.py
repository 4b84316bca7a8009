"""Strategy: the mix-in that turns an lm-eval class over a transformers model into one with a first pass.

A class of ours is `class X(Strategy, HFLM)`: requests come in, `keys` says which z' answers each of them, requests are grouped by that,
z' is merged once a group, and the lm-eval class answers the group as it always does; or it answers all of them in common batches, one z' a
sequence, where that is faster by count (`together.py`). The base weights are the same bits afterwards, also after an exception.

A strategy receives the run: each request knows the task object that it comes from and the arguments that it was built with
(`t2eval.environment.runs`). What was found for one evaluation is forgotten when the next one begins on the same object.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from t2eval.basemodel.chat import Chat
from t2eval.basemodel.folders import embedded_library_dir
from t2eval.basemodel.load import model_source
from t2eval.environment import harness, runs
from t2eval.errors import T2Error, UsageError
from t2eval.expert.adapter import Adapter
from t2eval.expert.expert import Expert
from t2eval.expert.library import load_any
from t2eval.generation.engine import Engine, room_for_prompt
from t2eval.generation.settings import GenerationSettings
from t2eval.generation.usage import Usage
from t2eval.models import finite
from t2eval.models.base import one_reason, placed
from t2eval.models.launch import one_message
from t2eval.models.mounts import AdapterMix, Mounts, refuse_unmixable
from t2eval.models.options import Options, split_arguments
from t2eval.models.recorded import Recorded
from t2eval.models.together import AUTOMATIC, Together, without_padding
from t2eval.paths import EMBEDDED, SMOLLM2, is_embedded, smollm2_library
from t2eval.store.texts import utf8_text
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.strategies.fewshot import Ranks
from t2eval.svf.adapted import Adapted
from t2eval.svf.attachment import attach, attached
from t2eval.vision.features import Reader

_log = logging.getLogger(__name__)


def _refuse_no_library(smollm2: bool) -> None:
    """Refuse a base model without `experts=`, but the real model where its shipped experts lie."""
    if not smollm2:
        raise UsageError("A base model of your own needs experts= in model_args: a library, or expert directories joined by '+'.")
    if not smollm2_library().is_dir():
        raise UsageError(
            f"The experts of {SMOLLM2!r} are not in {smollm2_library()}: a checkout of t2eval holds them, an installed wheel does not. "
            "Give experts= in model_args, or train them: `t2 bench smollm2 --output DIR` leaves them in DIR/experts/seed-0."
        )


class Strategy(Together, Recorded):
    """See the module's text. Subclasses set `OPTIONS`, and define `check_library`, `prepare`, `keys`, `scale`, `forget` and `report`."""

    OPTIONS: ClassVar[type[Options]] = Options
    EMBEDDED: ClassVar[str] = EMBEDDED
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
    add_bos_token: bool | None
    cache_hook: Any
    tok_encode: Any
    chat_template_args: dict[str, Any]
    tok_batch_encode: Any
    _rank: int
    _world_size: int

    def __init__(self, pretrained: Any = None, **arguments: Any) -> None:
        with one_message():
            harness.check_version()
            runs.record()
            if not sys.stderr.isatty():
                transformers_logging.disable_progress_bar()
            order = type(self).__mro__
            self.options, rest = split_arguments(self.OPTIONS, arguments, order[order.index(Strategy) + 1 :])
            self._embedded = pretrained is None or pretrained == self.EMBEDDED
            self._smollm2 = pretrained == SMOLLM2
            if not self._embedded and self.options.experts is None:
                _refuse_no_library(self._smollm2)
            if pretrained is None or isinstance(pretrained, str) and (is_embedded(pretrained) or pretrained == SMOLLM2):
                pretrained = model_source(pretrained or self.EMBEDDED)
            if rest.get("peft") or rest.get("delta"):
                raise UsageError("peft= and delta= cannot be combined with experts: merge the adapter into the base model first.")
            rest = placed(pretrained, rest)
            self._refuse_tasks()
            self.experts: list[Expert | Adapter] = load_any(self._library(), self.options.labels)
            self.check_library()
            self._given = dict(rest)
            with one_reason(pretrained, rest):
                super().__init__(pretrained=pretrained, **rest)  # type: ignore[call-arg]
            if self.backend != "causal":
                raise UsageError(f"{pretrained!r} is an encoder-decoder model; experts scale decoder-only models.")
            if self.tokenizer.eos_token_id is None:
                raise T2Error(
                    f"The tokenizer of {pretrained!r} has no eos_token, by which lm-eval ends answers: set eos_token in its "
                    "tokenizer_config.json to the token that ends a text."
                )
            self._set_ranks()
            self._renderer = Chat(super().apply_chat_template, getattr(self, "processor", self.tokenizer))  # type: ignore[misc]
            self._attach()
            self.prepare()
            self._begin(runs.recorded())

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
        """lm-eval names its result folders by `pretrained`: the embedded base is written into the arguments that it keeps."""
        arg_dict.setdefault("pretrained", cls.EMBEDDED)
        return super().create_from_arg_obj(arg_dict, additional_config)  # type: ignore[misc]

    # ------------------------------------------------------------------ what a strategy defines
    def check_library(self) -> None:
        """Check options against the library, before the base model is loaded."""

    def prepare(self) -> None:
        """Make ready what lasts as long as the object."""

    def keys(self, requests: Sequence[Any]) -> list[Hashable]:
        """The first pass: for each request the key of the z' that answers it; None is the base weights."""
        raise NotImplementedError

    def scale(self, key: Hashable) -> Mapping[str, Tensor] | AdapterMix:
        """z' of a key that `keys` gave, or the adapters that answer it."""
        raise NotImplementedError

    # ------------------------------------------------------------------ requests
    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood_rolling", requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        with one_message():
            checked: Any = None
            for request in requests:
                if request.args[1] != checked:  # mostly one task's, and all alike
                    room_for_prompt(int(self.max_length), self.limit_of(request))
                    checked = request.args[1]
        answers = self._answer("generate_until", requests, disable_tqdm)
        return [utf8_text(answer) for answer in answers]  # lm-eval writes no samples of a task with half of a surrogate pair in one

    def _answer(self, method: str, requests: list[Any], disable_tqdm: bool) -> list[Any]:
        with one_message():
            self._enter(requests)
            keys = self.keys(requests)
            answers: dict[int, Any] = {}
            with self.second_pass.timed(), self._alone():
                for indices in self._shared(method, requests, keys):
                    answers |= self._answer_together(method, requests, keys, indices, disable_tqdm)
                groups: dict[Hashable, list[int]] = {}
                for index in (index for index in range(len(requests)) if index not in answers):
                    groups.setdefault(keys[index], []).append(index)
                for key, indices in groups.items():
                    asked = [requests[index] for index in indices]
                    briefly = len(groups) > 1 and self._briefly(method, asked)  # one z' alone is merged, whatever it answers
                    with contextlib.nullcontext() if key is None else self.applied(self.scale(key), briefly=briefly):
                        found = self._by_lm_eval(method, asked, disable_tqdm)
                    answers.update(zip(indices, found, strict=True))
            self._share()
            return [answers[index] for index in range(len(requests))]

    def _by_lm_eval(self, method: str, requests: list[Any], disable_tqdm: bool) -> list[Any]:
        """The lm-eval class's own answers, by the model as it is now."""
        parent = getattr(super(), method)
        try:
            found: list[Any] = parent(requests, disable_tqdm=disable_tqdm)
        except finite.NotFinite:
            finite.name_document(partial(parent, disable_tqdm=True), requests)
        return found

    @contextlib.contextmanager
    def applied(self, z: Mapping[str, Tensor] | AdapterMix, *, briefly: bool = False) -> Iterator[None]:
        """The model with z': merged, or through the hooks where weights are quantised or z' is used too briefly to be worth a merge; or
        with adapters on it."""
        if isinstance(z, AdapterMix):
            with self.mounts.applied(z):
                yield
            return
        if not (self.through_hooks or briefly):
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
        rows = [without_padding(row) for row in inps.tolist()] if "loglikelihood" in self._rows else []
        with self._under("loglikelihood", rows):
            logits: Tensor = super()._model_call(inps, *arguments, **named)  # type: ignore[misc]
        finite.refuse(logits)
        return logits

    def _model_generate(self, context: Tensor, *arguments: Any, **named: Any) -> Tensor:
        mask = named.get("attention_mask")
        mask = torch.ones_like(context) if mask is None else mask
        rows = [tuple(ids[keep.bool()].tolist()) for ids, keep in zip(context, mask, strict=True)] if self._rows else []
        with self._under("generate_until", rows), finite.watched(self.model):
            made: Tensor = super()._model_generate(context, *arguments, **named)  # type: ignore[misc]
        self._count(mask, made)
        return made

    def _count(self, mask: Tensor, made: Tensor) -> None:
        """Count the tokens of a batch's prompts and answers."""
        answer = made[:, mask.shape[1] :]
        self.second_pass.tokens += int(mask.sum()) + int((answer != self.tokenizer.pad_token_id).sum())

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        with one_message():
            return self._renderer(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        with one_message():
            try:
                found: str | None = super().chat_template(chat_template)  # type: ignore[misc]
            except ValueError as error:
                raise UsageError(f"--apply_chat_template: {error} Use a model with a chat template, or leave the flag out.") from error
            return found

    # ------------------------------------------------------------------ the first pass's model
    @property
    def adapted(self) -> Adapted:
        """The model's scaling as it is now: another lm-eval object on the same model may have put on one of more matrices."""
        found = attached(self.model)
        assert found is not None
        return found

    def engine(self, usage: Usage | None = None) -> Engine:
        """The model for batches of the first pass, outside of lm-eval's response cache; no batch is larger than lm-eval's."""
        return Engine(
            self.model,
            self.tokenizer,
            batch_size=self._batch() or AUTOMATIC,
            usage=self.first_pass if usage is None else usage,
            max_length=int(self.max_length),
            add_bos_token=self.add_bos_token,
            reader=self.image_reader(),
        )

    def image_reader(self) -> Reader | None:
        """What reads prompts with images; None where the model reads text only."""
        return None

    def settings(self, generation_kwargs: Mapping[str, Any]) -> GenerationSettings:
        """How the first pass answers: as lm-eval does with these `generation_kwargs`."""
        return GenerationSettings.from_gen_kwargs(generation_kwargs, int(self.max_gen_toks), getattr(self, "think_end_token", None))

    def _chat_prompt(self, user: str, lead: str) -> str:
        history = [{"role": "user", "content": user}]
        if not lead:
            return self._renderer(history)
        return self._renderer([*history, {"role": "assistant", "content": lead.lstrip()}], add_generation_prompt=False)

    @property
    def skills(self) -> list[Expert | Adapter]:
        """The library without its classification expert (unless that is all there is)."""
        found = [expert for expert in self.experts if expert.label != DISPATCH_LABEL]
        return found or self.experts

    def ranks(self) -> Ranks:
        """The processes that share a search; one alone where lm-eval's response cache may skip calls on some ranks."""
        size = int(self._world_size)
        return Ranks(int(self._rank), size, self._gather) if size > 1 and self._collective() else Ranks()

    def adapters(self, what: str) -> list[Adapter]:
        """The skills as adapters that are to be mixed; empty where they are experts.

        Raises:
            UsageError: both kinds, or adapters that cannot be mixed.
        """
        found = [skill for skill in self.skills if isinstance(skill, Adapter)]
        if found and len(found) < len(self.skills):
            raise UsageError(f"{what} mixes experts of one kind, and experts= names both z experts and PEFT adapters ({found[0].name}).")
        refuse_unmixable(found, what)
        return found

    @property
    def z_skills(self) -> list[Expert]:
        """The skills that are z experts."""
        return [skill for skill in self.skills if isinstance(skill, Expert)]

    # ------------------------------------------------------------------ loading
    def _library(self) -> Any:
        if self.options.experts is not None:
            return self.options.experts
        return smollm2_library() if self._smollm2 else self.embedded_library()

    def embedded_library(self) -> Path | list[Path]:
        """The folder of its experts, or several."""
        return Path(embedded_library_dir(0))

    def _set_ranks(self) -> None:
        """HFLM sets rank and world size on GPUs only; on CPUs both processes would evaluate everything."""
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and accelerator.num_processes > 1 and self._world_size == 1:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _attach(self) -> None:
        self.mounts = Mounts(self.model)
        self.experts = [expert.remapped(self.model) if isinstance(expert, Expert) else expert for expert in self.experts]
        self._attach_z([expert for expert in self.experts if isinstance(expert, Expert)])
        adapters = [expert for expert in self.experts if isinstance(expert, Adapter)]
        for adapter in adapters:
            adapter.check(self.model, allow=self.options.allow_basis_mismatch)
        self.mounts.probe(adapters)

    def _attach_z(self, experts: list[Expert]) -> None:
        """Make the matrices of the z experts scalable; an adapter needs nothing of it."""
        self.through_hooks = False
        known = attached(self.model)  # one scaling a model object, however many lm-eval objects share it
        if not experts:
            if known is not None:
                known.set_z(None)
            return
        paths = sorted({path for expert in experts for path in expert.z})
        keep_base = self.options.keep_base or (known.keep_base if known is not None else "device")
        if known is None or not set(paths) <= set(known.paths):
            if known is not None:
                known.detach()
                paths = sorted({*paths, *known.paths})
            attach(self.model, paths=paths)
        self.adapted.set_z(None)
        self.adapted.keep_base = keep_base
        for expert in experts:
            expert.check(self.adapted, self.options.allow_basis_mismatch)
        self.through_hooks = not self.adapted.mergeable
