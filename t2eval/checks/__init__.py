"""Checks: what this machine has, and what a run would miss."""
