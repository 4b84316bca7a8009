"""Statistics: means with their errors, paired tests, corrections. Numbers in, numbers out."""
