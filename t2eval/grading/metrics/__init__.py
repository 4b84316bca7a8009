"""The metrics as `evaluate` loads them: by the path of their file, without the hub."""
