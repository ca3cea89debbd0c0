"""Measures speed, memory and agreement, mostly beside what a user could use instead (torch, the tokenizers library)."""
