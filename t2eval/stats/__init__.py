"""Numbers in, numbers out: means with errors, paired and clustered tests, corrections for many tests, and power."""
