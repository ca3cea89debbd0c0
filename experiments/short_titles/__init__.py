"""Short vehicle titles, a task that SmolLM2-135M learns within minutes on two cores: what the ablations here run on.

`documents.py` makes a title of some lines and its answer, `rows.py` the rows of each question, and the command
`python -m experiments.short_titles` writes them. `setting.py` is what all sweeps on them have in common.
"""
