"""Internals: what t2eval needs of other packages beyond what they promise, by name, so that a release that lacks one is told by name.

Each line of `INTERNALS` is one thing in the forms that it has had: one of them must be there. A form is a dotted path; `path(a, b)` is a
callable that takes these arguments; `path~name` is a class or module whose own source speaks of `name`, for what only its objects have.
`t2 doctor` looks at all, and so does `python -m t2eval.checks.internals`, which `.ci/prerelease` and `.ci/oldest` run first.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_TASK = "lm_eval.api.task.ConfigurableTask"
_HFLM = "lm_eval.models.huggingface.HFLM"
_MIXIN = "transformers.generation.utils.GenerationMixin"

# package → the module of t2eval that leans on it → what it needs
INTERNALS: dict[str, dict[str, tuple[str, ...]]] = {
    "lm_eval": {
        "environment/harness.py": (
            "lm_eval.tasks.TaskManager~include_defaults",
            "lm_eval.tasks.TaskManager.task_index | lm_eval.tasks.TaskManager._task_index",
            "lm_eval.tasks.TaskManager.load",
            "lm_eval.tasks._yaml_loader.load_yaml(resolve_func, recursive)",
            "lm_eval.utils.env.from_string | lm_eval.config.templates._jinja_env",
            f"{_TASK}~_metric_fn_list | {_TASK}~_scorers",
            f"{_TASK}~_aggregation_list | {_TASK}~_scorers",
            f"{_TASK}~_filters | {_TASK}~_scorers",
            f"{_TASK}~multiple_input | {_TASK}~_multiple_inputs",
            f"{_TASK}~fewshot_cfg | {_TASK}~_fewshot_cfg",
            "lm_eval.api.task.Task.doc_to_prefix | lm_eval.api.task.Task._resolve_field",
            f"{_TASK}.construct_requests(doc, ctx) | lm_eval.api.task.MultipleChoiceTask.construct_requests(doc, ctx)",
            "lm_eval.api.task.Task.process_results | lm_eval.api.task.Task._try_process_results",
            "lm_eval.api.instance.Instance(doc, arguments, idx, metadata) | "
            "lm_eval.api.instance.Instance(doc, arguments, task_name, doc_id)",
            f"lm_eval.api.instance.Instance(metadata) | {_TASK}~_multiple_targets",
            "lm_eval.filters.build_filter_ensemble",
            "lm_eval.api.registry.metric_registry",
            "lm_eval.api.registry.aggregation_registry",
            "lm_eval.api.registry.model_registry",
            "lm_eval.models.utils.normalize_gen_kwargs",
            "lm_eval.utils.handle_arg_string",
            "lm_eval.evaluator.simple_evaluate(model, tasks, task_manager)",
        ),
        "environment/runs.py": (
            "lm_eval.api.task.Task.build_all_requests(limit, samples, rank, world_size, system_instruction, apply_chat_template, "
            "fewshot_as_multiturn, chat_template)",
            f"{_TASK}.fewshot_context(doc, num_fewshot, system_instruction, apply_chat_template, fewshot_as_multiturn, "
            "chat_template, gen_prefix)",
            "lm_eval.api.samplers.ContextSampler.sample(n, eval_doc)",
            "lm_eval.api.samplers.ContextSampler~rnd",
            "lm_eval.evaluator.evaluate(lm)",
        ),
        "environment/quiet.py": ("lm_eval.evaluator.get_git_commit_hash",),
        "environment/response_cache.py": ("lm_eval.api.model.CacheHook~dbdict",),
        "environment/multimodal.py": ("lm_eval.models.hf_vlms.HFMultimodalLM._create_tokenizer",),
        "models/strategy.py": (
            f"{_HFLM}._model_generate(context)",
            f"{_HFLM}._model_call(inps)",
            f"{_HFLM}.tok_batch_encode",
        ),
        "models/images.py": ("lm_eval.models.hf_vlms.HFMultimodalLM._model_multimodal_generate(inputs)",),
    },
    "transformers": {
        "generation/choosing.py": (
            f"{_MIXIN}._prepare_generation_config(generation_config)",
            f"{_MIXIN}._prepare_special_tokens(generation_config, kwargs_has_attention_mask, device)",
            f"{_MIXIN}._get_logits_processor(generation_config, input_ids_seq_length, device, model_kwargs)",
            f"{_MIXIN}~_eos_token_tensor",
        ),
        "generation/decoder.py": (
            f"{_MIXIN}._update_model_kwargs_for_generation",
            f"{_MIXIN}._sample",
            f"{_MIXIN}._supports_default_dynamic_cache | transformers.PreTrainedModel._supports_default_dynamic_cache",
            "transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        ),
        "generation/static.py": (
            "transformers.cache_utils.StaticLayer",
            "transformers.cache_utils.DynamicSlidingWindowLayer",
            "transformers.cache_utils.Cache(layers)",
            "transformers.PreTrainedModel._can_compile_fullgraph",
            "transformers.PreTrainedModel._supports_attention_backend",
            "transformers.PretrainedConfig~_attn_implementation",
        ),
        "generation/cache.py": (
            "transformers.cache_utils.DynamicCache",
            "transformers.cache_utils.DynamicLayer~keys",
            "transformers.cache_utils.DynamicLayer~values",
        ),
        "basemodel/load.py": ("transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",),
        "svf/matrices.py": ("transformers.pytorch_utils.Conv1D",),
        "models/identity.py": ("transformers.GenerationConfig~_from_model_config",),
        "training/choices.py": ("transformers.PreTrainedModel._is_stateful",),
    },
    "peft": {
        "training/adapters.py": (
            "peft.get_peft_model_state_dict(adapter_name, save_embedding_layers)",
            "peft.set_peft_model_state_dict(adapter_name)",
            "peft.utils.constants~TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
        ),
        "generation/decoder.py": ("peft.PeftModel.get_base_model",),
    },
    "accelerate": {
        "bench/trackers.py": ("accelerate.tracking.LOGGER_TYPE_TO_CLASS",),
        "training/processes.py": ("accelerate.tracking.get_available_trackers", "accelerate.utils.gather_object"),
        "training/parts.py": ("accelerate.utils.memory.should_reduce_batch_size", "accelerate.utils.memory.clear_device_cache"),
    },
    "datasets": {"basemodel/probe.py": ("datasets.config.HF_DATASETS_CACHE", "datasets.naming.camelcase_to_snakecase")},
    "sqlitedict": {"environment/response_cache.py": ("sqlitedict.SqliteDict~tablename", "sqlitedict.SqliteDict~conn")},
    "cmaes": {
        "strategies/search/covariance.py": ("cmaes.CMA~_C", "cmaes.CMA~_sigma", "cmaes.SepCMA~_sigma"),
        "strategies/search/separable.py": ("cmaes.SepCMA~_mean", "cmaes.SepCMA~_C"),
    },
    "torch": {
        "svf/hooks.py": ("torch.nn.Module~_forward_hooks", "torch.nn.Module~_forward_pre_hooks"),
        "svf/merge.py": ("torch.nn.Module~_parameters", "torch.Tensor._version"),
        "bench/worker.py": ("torch.utils.collect_env.get_pretty_env_info",),
    },
}

_FORM = re.compile(r"(?P<path>[\w.]+)(\((?P<arguments>[^)]*)\))?(~(?P<word>\w+))?")


def count() -> int:
    """How many things are needed."""
    return sum(len(needs) for users in INTERNALS.values() for needs in users.values())


def absent() -> list[str]:
    """What the installed packages lack, one line each: package, version, what, and the module that leans on it. Imports them all."""
    return [
        f"{package} {_version(package)} has no {need.replace(' | ', ' or ')}, on which t2eval/{user} leans"
        for package, users in INTERNALS.items()
        for user, needs in users.items()
        for need in needs
        if not any(_has(form) for form in need.split(" | "))
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _has(form: str) -> bool:
    read = _FORM.fullmatch(form)
    assert read is not None, form
    try:
        found = _at(read["path"])
    except (ImportError, AttributeError):
        return False
    if read["arguments"] is not None:
        parameters = inspect.signature(found).parameters
        return all(name in parameters for name in re.split(r",\s*", read["arguments"]))
    return read["word"] is None or re.search(rf"\b{read['word']}\b", inspect.getsource(found)) is not None


def _at(path: str) -> Any:
    """What a dotted path leads to.

    Raises:
        ImportError, AttributeError: nothing.
    """
    parts = path.split(".")
    found: Any = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], 2):
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(".".join(parts[:place]))
    return found


if __name__ == "__main__":
    lines = absent()
    print("\n".join(lines) or f"All {count()} internals that t2eval leans on are there.")
    sys.exit(bool(lines))
