"""Strategies: how z' is chosen at test time."""
