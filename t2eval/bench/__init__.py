"""Benchmarks: many cells, one leaderboard.

`plan` turns a benchmark file into cells, `execute` runs them and resumes, `compare` has the error bars and paired tests,
`report` the tables, `demo` the whole thing on the embedded base model.
"""
