#!/usr/bin/env bash
# A benchmark for one change: run it, write the table and the page, hold it against the last run that was kept, keep it.
#   ci/leaderboard.sh OUTPUT [HISTORY]    HISTORY: a folder with the runs that were kept, one folder each; may not exist yet
# Exit code: 0; 3 where a cell is significantly worse than in the last run kept; 2 where the two cannot be compared; 1 where a cell failed.
# BENCHMARK names the benchmark file, WORKERS, LIMIT and SEEDS are passed on where they are set, T2 is the command.
# KEEP=N keeps this run, unless it is worse, and the N newest runs in all. ACCEPT=1 keeps it even so, and where tasks were changed.
set -euo pipefail
output="$1"
history="${2:-}"
t2="${T2:-t2}"

failed=0
"$t2" bench "${BENCHMARK:-embedded}" --output "$output" --workers "${WORKERS:-1}" ${LIMIT:+--limit "$LIMIT"} ${SEEDS:+--seeds "$SEEDS"} || failed=$?
[ "$failed" -le 1 ] || exit "$failed"
if [ "$failed" -eq 1 ] && [ -z "$(find "$output" -name rows.jsonl -size +0 2>/dev/null)" ]; then
    exit 1 # nothing was evaluated, and bench has said why
fi
"$t2" leaderboard "$output" >"$output/leaderboard.md"
"$t2" leaderboard "$output" --format json >"$output/leaderboard.json"
"$t2" leaderboard "$output" --html "$output/page.html"

verdict=0
if [ -n "$history" ]; then
    mkdir -p "$history"
    last="$(find "$history" -mindepth 1 -maxdepth 1 -type d ! -name '*.part' | sort | tail -n 1)"
    "$t2" leaderboard "$output" --fail-on-regression "${last:-$history/none}" ${ACCEPT:+--leave-out-changed-tasks} \
        >"$output/verdict.txt" 2>&1 || verdict=$?
    {
        printf '\n## Against the last run that was kept\n\n```\n'
        cat "$output/verdict.txt"
        printf '```\n'
    } >>"$output/leaderboard.md"
fi
cat "$output/leaderboard.md"
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
    cat "$output/leaderboard.md" >>"$GITHUB_STEP_SUMMARY"
fi

if [ "$verdict" -eq 3 ] && [ -n "${ACCEPT:-}" ]; then
    echo "Worse, and accepted."
    verdict=0
fi
[ "$verdict" -eq 0 ] || exit "$verdict"
[ "$failed" -eq 0 ] || exit "$failed"
if [ -n "$history" ] && [ -n "${KEEP:-}" ]; then
    find "$history" -mindepth 1 -maxdepth 1 -type d -name '*.part' -exec rm -r -- {} + # a copy that was cut off
    kept="$history/$(date -u +%Y%m%dT%H%M%SZ)-$(git rev-parse --short=12 HEAD 2>/dev/null || echo no-commit)"
    cp -R "$output" "$kept.part"
    mv "$kept.part" "$kept"
    find "$history" -mindepth 1 -maxdepth 1 -type d | sort -r | tail -n "+$((KEEP + 1))" | while read -r old; do rm -r -- "$old"; done
    echo "Kept as $kept."
fi
