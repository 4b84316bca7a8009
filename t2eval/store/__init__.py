"""The store: how files are written, and what a run folder says of itself."""
