"""The leaderboard: rows of a benchmark as tables."""
