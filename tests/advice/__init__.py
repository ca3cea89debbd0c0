"""Advice is followed: each text of the source that names a flag, a step or a command leads to what works.

`source.py` finds the texts, tables by area (`test_reading.py`, `test_configs.py`, …) make the situations and follow
what is said there, and `test_listing.py` checks that no text is left out.
"""
