"""Embedded: the recipe of the embedded base model and its synthetic tasks."""
