"""Code tasks: lm-eval tasks whose answers are programs, scored by pass@k of n answers a problem.

A task's YAML names a subclass by `class:`; what it and its test are for one document, the subclass says. n and k come from the YAML
(`metadata: {n: 20, k: [1, 10]}`) or the command line (`--metadata n=20 k=[1,10]`, which lm-eval merges into that). pass@1 is always
the first metric, so that training, search and benchmarks take it whatever else is asked for.

lm-eval hands answers over document by document. The task's one filter sees them all at once: it leaves them as they are, but runs
their programs side by side, and `process_results` finds the verdicts there. Without the filter it runs its document's programs itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask

from t2eval.environment.harness import answers_of, as_filtered, generation_settings, set_only_filter
from t2eval.errors import UsageError
from t2eval.grading.pass_at_k import scores
from t2eval.sandbox.programs import judge_many
from t2eval.sandbox.run import Verdict

SECONDS = 5.0
"""Wall-clock time of one program."""


class CodeTask(ConfigurableTask):  # type: ignore[misc]
    """An lm-eval task whose answers are programs.

    Attributes:
        together: run a test behind its program in one process, for tests that need the program's own objects. Such a program can forge its
            verdict; by default a test calls its program from a process of its own.
    """

    together = False

    def __init__(self, config: dict[str, Any]) -> None:
        """Build the task.

        Args:
            config: the YAML, functions resolved, with lm-eval's `--metadata` in its `metadata`.

        Raises:
            UsageError: n or k makes no sense.
            T2Error: a row of the data cannot be graded.
        """
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._n, self._ks = _sampling(str(config["task"]), config.get("metadata") or {})

        def run_programs(resps: Iterable[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[Any]:
            answers = [list(given) for given in resps]
            self._run([self.program(doc, answer) for doc, given in zip(docs, answers, strict=True) for answer in given])
            return [as_filtered(given) for given in answers]

        def pass_at_k(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
            pairs = [self.program(doc, answer) for answer in answers_of(results)]
            if missing := [pair for pair in pairs if pair not in self._verdicts]:
                self._run(missing)
            return scores([self._verdicts[pair].passed for pair in pairs], self._ks)

        own = {key: value for key, value in config.items() if key != "class"}
        own["repeats"] = self._n
        own["metric_list"] = [{"metric": f"pass@{k}", "aggregation": "mean", "higher_is_better": True} for k in self._ks]
        # A function, not a method: lm-eval copies a task's configuration deeply, and with a method the whole task.
        own["process_results"] = pass_at_k
        super().__init__(config=own)
        # Not in the configuration either, of which benchmarks keep a hash: there, it would be written with its place in memory.
        set_only_filter(self, run_programs)

    def program(self, doc: Mapping[str, Any], answer: str) -> tuple[str, str]:
        """The program that an answer makes, and the test that it must pass; both Python text."""
        raise NotImplementedError

    def why(self, doc: Mapping[str, Any], results: Sequence[Any]) -> str | None:
        """Why the answers to a document have their score: how the program of each ended, in one line.

        Args:
            doc: of the last batch that was scored.
            results: its answers, as `process_results` got them.

        Returns:
            Text that the programs wrote in part; None where they were not of that batch.
        """
        found = [self._verdicts.get(self.program(doc, answer)) for answer in answers_of(results)]
        told = [f"{verdict.status}: {verdict.detail}" if verdict.detail else verdict.status for verdict in found if verdict is not None]
        return "; ".join(told) if told and len(told) == len(found) else None

    def _run(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Run programs, equal ones once; only these verdicts are kept."""
        different = list(dict.fromkeys(pairs))
        self._verdicts = dict(zip(different, judge_many(different, together=self.together, timeout=SECONDS), strict=True))

    def build_all_requests(self, **options: Any) -> None:
        """lm-eval's own, unless n answers would all be the same.

        Raises:
            UsageError: several answers a problem are asked for, and decoding is greedy.
        """
        if self._n > 1 and not generation_settings(self.config.generation_kwargs or {}).get("do_sample"):
            raise UsageError(
                f"{self.config.task}: n={self._n} answers a problem, but decoding is greedy, so all would be the same. "
                "Add `--gen_kwargs do_sample=true,temperature=0.8`, or the same in the YAML's generation_kwargs."
            )
        super().build_all_requests(**options)


def _sampling(task: str, metadata: Mapping[str, Any]) -> tuple[int, list[int]]:
    """n, and the values of k with 1 first."""
    n, asked = metadata.get("n", 1), metadata.get("k", [1])
    ks = [asked] if isinstance(asked, int) else asked
    whole = isinstance(ks, (list, tuple)) and all(type(value) is int and value > 0 for value in [n, *ks])
    if not whole or max([1, *ks]) > n:
        raise UsageError(
            f"{task}: n={n!r} answers a problem and k={asked!r}: n is a whole number, k one or a list, and each k is from 1 to n. "
            "Example: --metadata n=20 k=[1,10]"
        )
    return n, sorted({1, *ks})
