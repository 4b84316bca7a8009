"""Strategy: the mix-in that turns an lm-eval class over a transformers model into one with a first pass.

A class of ours is `class X(Strategy, HFLM)`: requests come in, `keys` says which z' answers each of them, requests are grouped by that,
z' is merged once a group, and the lm-eval class answers the group as it always does. The base weights are the same bits afterwards,
also after an exception.

A strategy receives the run: each request knows the task object that it comes from and the arguments that it was built with
(`t2eval.environment.runs`). What was found for one evaluation is forgotten when the next one begins on the same object.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from t2eval.basemodel.chat import Chat
from t2eval.basemodel.devices import check_dtype, pick_device, pick_dtype, say_widened, stored_dtype
from t2eval.basemodel.load import embedded_library_dir, model_source
from t2eval.environment import harness, runs
from t2eval.errors import T2Error, UsageError
from t2eval.expert.expert import Expert
from t2eval.expert.library import load_library
from t2eval.generation.engine import Engine
from t2eval.generation.settings import GenerationSettings
from t2eval.models import identity
from t2eval.models.evaluation import Evaluation, closing_line
from t2eval.models.launch import one_message, under_lm_eval
from t2eval.models.options import Options, split_arguments
from t2eval.paths import EMBEDDED, SMOLLM2, is_embedded, tasks_dir
from t2eval.strategies.dispatch import DISPATCH_LABEL
from t2eval.strategies.fewshot import Ranks
from t2eval.svf.adapted import Adapted, attach, attached
from t2eval.vision.features import Reader

_log = logging.getLogger(__name__)
_AUTOMATIC = 32
"""Sequences of a batch of the first pass where lm-eval finds the size of its own by itself (`--batch_size auto`)."""


class Strategy:
    """See the module's text. Subclasses set `OPTIONS`, and define `check_library`, `prepare`, `keys`, `scale`, `forget` and `report`."""

    OPTIONS: ClassVar[type[Options]] = Options
    EMBEDDED: ClassVar[str] = EMBEDDED
    UNSERVED: ClassVar[Mapping[str, str]] = {}
    """Output type of a task → why the strategy has nothing for it."""
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
    add_bos_token: bool | None
    cache_hook: Any
    tok_encode: Any
    chat_template_args: dict[str, Any]
    tok_batch_encode: Any
    _encode_pair: Any
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
            if not self._embedded and self.options.experts is None:
                raise UsageError("A base model of your own needs experts= in model_args: a library, or expert directories joined by '+'.")
            if pretrained is None or isinstance(pretrained, str) and (is_embedded(pretrained) or pretrained == SMOLLM2):
                pretrained = model_source(pretrained or self.EMBEDDED)
            if rest.get("peft") or rest.get("delta"):
                raise UsageError("peft= and delta= cannot be combined with experts: merge the adapter into the base model first.")
            dtype = check_dtype(rest.get("dtype") or "auto")
            if not isinstance(pretrained, torch.nn.Module):
                asked = rest.get("device")  # lm-eval's command says cuda:0 where nobody asked for anything
                device = pick_device(None if asked == "cuda:0" and not torch.cuda.is_available() else asked)
                rest |= {"device": str(device), "dtype": _dtype(dtype, device, pretrained, rest)}
            self._refuse_tasks()
            self.experts: list[Expert] = load_library(self._library())
            self.check_library()
            self._given = dict(rest)
            self._load_base(pretrained, rest)
            self._set_ranks()
            self._renderer = Chat(super().apply_chat_template)  # type: ignore[misc]
            self._row_z: dict[tuple[int, ...], Mapping[str, Tensor]] = {}
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

    def forget(self) -> None:
        """Forget what was found for the last evaluation."""

    def keys(self, requests: Sequence[Any]) -> list[Hashable]:
        """The first pass: for each request the key of the z' that answers it; None is the base weights."""
        raise NotImplementedError

    def scale(self, key: Hashable) -> Mapping[str, Tensor]:
        """z' of a key that `keys` gave."""
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """What the strategy adds to `config.t2`; on data-parallel runs, called on every rank."""
        return {}

    def reads_of(self, run: runs.Run) -> Any:
        """What the first pass reads of a run besides its requests, for the identity of its answers; can be written as JSON."""
        return None

    def explain(self, run_name: str, document: int) -> dict[str, Any] | None:
        """What was chosen for one document, for the logged samples."""
        return None

    # ------------------------------------------------------------------ requests
    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("loglikelihood_rolling", requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._answer("generate_until", requests, disable_tqdm)

    def _answer(self, method: str, requests: list[Any], disable_tqdm: bool) -> list[Any]:
        with one_message():
            self._enter(requests)
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
        with one_message():
            return self._renderer(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        with one_message():
            try:
                found: str | None = super().chat_template(chat_template)  # type: ignore[misc]
            except ValueError as error:
                raise UsageError(f"--apply_chat_template: {error} Use a model with a chat template, or leave the flag out.") from error
            return found

    # ------------------------------------------------------------------ one evaluation after the other
    @property
    def first_pass(self) -> Any:
        return self._evaluation.first_pass

    @property
    def second_pass(self) -> Any:
        return self._evaluation.second_pass

    def _begin(self, after: int) -> None:
        """Forget the last evaluation; the runs of the next one have numbers above `after`."""
        self._evaluation = Evaluation(after, after)
        self._table: str | None = None
        self.forget()

    def _enter(self, requests: Sequence[Any]) -> None:
        """See which evaluation requests belong to: lm-eval builds all requests of one before the first is answered."""
        found = {run.number: run for run in map(runs.run_of, requests) if run is not None}
        if found and max(found) > self._evaluation.last_run:
            if self._evaluation.asked:
                self._begin(self._evaluation.last_run)
            self._evaluation.last_run = runs.recorded()
            self._table = None
        for _, run in sorted(found.items()):
            self._refuse_run(run)
        self._evaluation.asked += len(requests)
        if harness.caches_responses(self.cache_hook):
            self._table_name()  # while the base's weights are in place

    def _refuse_tasks(self) -> None:
        """Refuse the tasks of the evaluation that makes this model, before anything is loaded."""
        evaluation = harness.running_evaluation() if self.UNSERVED else None
        if evaluation is None:
            return
        manager = evaluation.get("task_manager")
        if manager is None:
            own = [self.options.include_path] if self.options.include_path else []
            manager = harness.open_index([str(tasks_dir()), *own], defaults=False)
        for task, kind in harness.asked_output_types(evaluation.get("tasks") or [], manager).items():
            self._refuse(task, kind)

    def _refuse(self, task: str, kind: str) -> None:
        if kind in self.UNSERVED:
            model = f"t2-{self.options.strategy}{self.options.suffix}"
            raise UsageError(f"Task {task!r} has output type {kind!r}, and {model} {self.UNSERVED[kind]}")

    def _refuse_run(self, run: runs.Run) -> None:
        self._refuse(run.name, run.kind)
        if run.arguments.get("cache_requests") and (stale := runs.stale(run)):
            raise UsageError(
                f"lm-eval's cache of requests (--cache_requests) holds other requests of task {run.name!r} than this run would build: "
                f"{stale}. Its key knows neither seeds nor what a group, --gen_kwargs or an edited YAML changes. Run once with "
                "--cache_requests refresh."
            )

    def finish_evaluation(self, results: Mapping[str, Any] | None, chosen: Mapping[str, list[int]] | None) -> None:
        """lm-eval has evaluated: write what was chosen beside each logged sample, and say it in one line.

        Args:
            results: what lm-eval returns; None where another rank returns it.
            chosen: lm-eval's `--samples`.
        """
        if getattr(self, "chat_applied", False):
            self.chat_applied = False  # hf-multimodal would go on as if the next evaluation's prompts were chats too
        if results is None:
            return
        for task, samples in (results.get("samples") or {}).items():
            places = (chosen or {}).get(task)
            for sample in samples:
                document = places.index(sample["doc_id"]) if places and harness.renumbers_samples() else int(sample["doc_id"])
                explained = self.explain(task.split("::")[-1], document)
                if explained is not None:
                    sample["t2"] = explained
        line = closing_line(self.t2_info())
        if under_lm_eval():
            print(line, file=sys.stderr, flush=True)
        else:
            _log.info(line)

    # ------------------------------------------------------------------ the first pass's model
    @property
    def adapted(self) -> Adapted:
        """The model's scaling as it is now: another lm-eval object on the same model may have put on one of more matrices."""
        found = attached(self.model)
        assert found is not None
        return found

    def engine(self) -> Engine:
        """The model for batches of the first pass, outside of lm-eval's response cache; no batch is larger than lm-eval's."""
        given = self.batch_size_per_gpu
        return Engine(
            self.model,
            self.tokenizer,
            batch_size=given if isinstance(given, int) and given > 0 else _AUTOMATIC,
            usage=self.first_pass,
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
    def identity(self) -> dict[str, Any]:
        """Everything that decides an answer besides the request and the run: base, tokenizer, experts, strategy, options, arguments."""
        scales = {id(parameter) for parameter in self.adapted.trainable().values()}
        return {
            "class": type(self).__name__,
            "options": self.options.model_dump(mode="json", exclude=set(identity.HARMLESS)),
            "experts": [[e.name, e.label, e.card.description, e.sha256, str(e.card.parameterisation)] for e in self.experts],
            "given": identity.given_facts(self._given),
            "model": identity.model_facts(self.model, scales),
            "tokenizer": identity.tokenizer_facts(getattr(self, "processor", None) or self.tokenizer),
            "lengths": [int(self.max_length), int(self.max_gen_toks)],
            "chat": self.chat_template_args,
        }

    def _table_name(self) -> str:
        if self._table is None:
            current = runs.since(self._evaluation.after)
            self._table = f"t2_{identity.digest([self.identity(), [self.reads_of(run) for run in current]])}"
        return self._table

    def set_cache_hook(self, cache_hook: Any) -> None:
        """lm-eval keys its response cache by the request alone: each identity gets a table of its own in the file."""
        if harness.caches_responses(cache_hook):
            self._begin(runs.recorded())  # an evaluation begins, of which this model may not see a single request
            harness.own_table(cache_hook, self._table_name)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def _collective(self) -> bool:
        return not harness.caches_responses(self.cache_hook)

    # ------------------------------------------------------------------ the record
    def _gather(self, thing: Any) -> list[Any]:
        found: list[Any] = [None] * int(self._world_size)
        torch.distributed.all_gather_object(found, thing)
        return found

    def _share(self) -> None:
        """Give every rank all ranks' records, while all of them are here."""
        own = self._evaluation.record(self.report())
        self._evaluation.totals = self._gather(own) if self._world_size > 1 and self._collective() else [own]

    def merge_reports(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """One report from those of all ranks."""
        return reports[0]

    def t2_info(self) -> dict[str, Any]:
        """`config.t2` of lm-eval's results file. Seconds are the slowest rank's, tokens those of all ranks."""
        records = self._evaluation.totals or [self._evaluation.record(self.report())]
        info = {
            "strategy": self.options.strategy,
            "experts": [
                {"name": expert.name, "label": expert.label, "sha256": expert.sha256, "basis_fingerprint": _short(expert)}
                for expert in self.experts
            ],
            "dispatch": {},
            "alphas": {},
            "adaptation": {},
            **self.merge_reports([each["report"] for each in records]),
            **self._evaluation.passes(records),
        }
        if harness.caches_responses(self.cache_hook):
            info["asked"] = sum(each["asked"] for each in records)
            if not info["asked"]:
                info["note"] = "every answer came from lm-eval's response cache (--use_cache): nothing was chosen now"
        return info

    def get_model_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super().get_model_info()  # type: ignore[misc]
        scales = sum(parameter.numel() for parameter in self.adapted.trainable().values())
        if isinstance(info.get("model_num_parameters"), int) and info["model_num_parameters"] > scales:
            info["model_num_parameters"] -= scales
        return {**info, "t2": self.t2_info()}


def _dtype(asked: str, device: torch.device, pretrained: Any, arguments: Mapping[str, Any]) -> str:
    """The dtype of the weights: half precision is held in float32 on a CPU, as `load_base` does, where the model is not a quantised one."""
    packed = [
        name for name in arguments if name in ("gguf_file", "autogptq", "gptqmodel") or name.startswith(("load_in_", "bnb_", "quant"))
    ]
    if asked != "auto" or device.type != "cpu" or packed or not isinstance(pretrained, (str, Path)):
        return asked
    try:
        revision, trust = arguments.get("revision") or "main", bool(arguments.get("trust_remote_code"))
        config = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError, HFValidationError):
        return asked  # lm-eval's class will say what is wrong with it
    if getattr(config, "quantization_config", None) is not None:
        return asked
    loaded = pick_dtype(asked, device, stored_dtype(config))
    say_widened(str(pretrained), stored_dtype(config), loaded)
    return str(loaded).removeprefix("torch.")


def _short(expert: Expert) -> str:
    """The basis fingerprint of an expert's card as one hash."""
    return hashlib.sha256(json.dumps(expert.card.basis_fingerprint, sort_keys=True).encode()).hexdigest()[:16]
