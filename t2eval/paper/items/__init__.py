"""Items: one module for each experiment of the paper. A module lists its items in `ITEMS`, and is found without being named anywhere."""
