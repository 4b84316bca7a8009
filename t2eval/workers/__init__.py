"""Workers: processes that answer items, and what they have in common."""
