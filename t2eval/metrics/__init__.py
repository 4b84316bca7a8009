"""Metrics: scores of answers as `evaluate.Metric` modules of our own, without the hub."""
