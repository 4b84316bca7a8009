#!/usr/bin/env bash
# A benchmark for one change: run it, print the table, exit with 3 if it is significantly worse than an earlier run.
#   ci/leaderboard.sh OUTPUT [BASELINE]    BASELINE: the folder of an earlier run, such as the main branch's; may not exist yet
# BENCHMARK names the benchmark file, WORKERS, LIMIT and SEEDS are passed on where they are set, T2 is the command.
set -euo pipefail
output="$1"
baseline="${2:-}"
t2="${T2:-t2}"

"$t2" bench "${BENCHMARK:-embedded}" --output "$output" --workers "${WORKERS:-1}" ${LIMIT:+--limit "$LIMIT"} ${SEEDS:+--seeds "$SEEDS"}
"$t2" leaderboard "$output" | tee "$output/leaderboard.md"
"$t2" leaderboard "$output" --format json >"$output/leaderboard.json"
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
    cat "$output/leaderboard.md" >>"$GITHUB_STEP_SUMMARY"
fi
if [ -n "$baseline" ]; then
    "$t2" leaderboard "$output" --fail-on-regression "$baseline"
fi
