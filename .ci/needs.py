"""What t2eval needs of lm-eval beyond what it promises, by name: lists what the installed one does not have, and exits with 1 then.

Each line of NEEDS is one thing in the forms that it has had; one of them must be there. See t2eval/environment/harness.py.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

NEEDS = [
    "lm_eval.tasks.TaskManager.task_index | lm_eval.tasks.TaskManager._task_index",
    "lm_eval.tasks.TaskManager.load",
    "lm_eval.tasks.TaskManager.all_subtasks",
    "lm_eval.tasks._yaml_loader.load_yaml",
    "lm_eval.utils.env | lm_eval.config.templates._jinja_env",
    "lm_eval.api.task.Task.build_all_requests",
    "lm_eval.api.task.Task.fewshot_context",
    "lm_eval.api.task.Task.construct_requests | lm_eval.api.task.MultipleChoiceTask.construct_requests",
    "lm_eval.api.task.Task.doc_to_prefix | lm_eval.api.task.Task._resolve_field",
    "lm_eval.api.task.Task.set_fewshot_seed",
    "lm_eval.api.task.Task.process_results",
    "lm_eval.api.task.ConfigurableTask",
    "lm_eval.api.task.Task.apply_filters",
    "lm_eval.api.samplers.ContextSampler.sample",
    "lm_eval.api.instance.Instance",
    "lm_eval.filters.build_filter_ensemble",
    "lm_eval.evaluator.simple_evaluate",
    "lm_eval.evaluator.evaluate",
    "lm_eval.evaluator.get_git_commit_hash",
    "lm_eval.models.utils.normalize_gen_kwargs",
    "lm_eval.utils.handle_arg_string",
    "lm_eval.models.huggingface.HFLM._model_generate",
    "lm_eval.models.huggingface.HFLM._model_call",
    "lm_eval.models.huggingface.HFLM.tok_batch_encode",
    "lm_eval.models.huggingface.HFLM._loglikelihood_tokens",
    "lm_eval.models.hf_vlms.HFMultimodalLM",
    "lm_eval.api.model.CachingLM",
    "lm_eval.api.registry.model_registry",
]


def has(path: str) -> bool:
    """Whether a dotted path leads to something."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


missing = [need for need in NEEDS if not any(has(form.strip()) for form in need.split("|"))]
for need in missing:
    print(f"lm-eval {version('lm_eval')} has no {need}")
if not missing:
    print(f"lm-eval {version('lm_eval')} has all {len(NEEDS)} things that are needed")
sys.exit(bool(missing))
