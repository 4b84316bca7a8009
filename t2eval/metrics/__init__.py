"""Metrics: what makes an answer right, as plain functions that tasks call."""
