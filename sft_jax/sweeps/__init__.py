"""Sweeps: many runs of one question, stated by a file, kept in one directory."""
