"""Forecast: tokens, hours and memory of a benchmark, before anything runs."""
