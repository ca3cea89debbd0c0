"""Does a small model learn to read vehicle titles? The experiment behind `make quickstart`.

`titles.py` invents vehicles and their owners, `layouts.py` prints them as different states would, `prompts.py` asks for
their fields, `documents.py` writes the training and held-out rows, and `run.py` trains and measures.
"""
