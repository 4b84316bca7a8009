"""Metrics: what makes an answer right, as functions and as `evaluate.Metric` modules of our own, without the hub."""
