"""Experiments, one folder for each question, with the command that answers it and what was measured; see README.md."""
