"""Generation: token ids in, completions with log-probabilities out."""
