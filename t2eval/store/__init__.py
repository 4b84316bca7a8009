"""What is written and read back, through one door: whole files, run folders with their settings guard and lock, digests, versions."""
