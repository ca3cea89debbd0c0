"""Finds texts that are alike without comparing every pair; used by cleaning steps and by checks."""
