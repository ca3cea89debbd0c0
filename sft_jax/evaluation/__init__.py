"""How good a model is, and whether a difference is real.

Tasks ask about records and score the responses (`tasks/`, `scorers/`), methods change prompts and weights
(`methods.py`), `measuring.py` has a model respond, `side_by_side.py` does so for several methods, and from `results.py`
reports are made (`report/`). Intervals and paired tests: `scoring.py` and `statistics.py`. `harness.py` runs the tasks
of another evaluation tool.
"""
