"""The page: a leaderboard as one HTML file that opens from disk, or is served while its benchmark runs."""
