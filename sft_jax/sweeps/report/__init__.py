"""The report of a sweep: from the files of its runs to what was found, with uncertainty over seeds.

reading.py reads runs; quantities.py takes a number of each; analysis.py puts runs of one setting together and compares
settings; curves.py and plots.py draw; sections.py says all of it in words and tables, which terminal.py prints,
write.py writes out and embedding.py puts into a text of somebody's. Pages, Markdown and the look of plots are those of
`evaluation/report/`. comparing.py reports of two runs.

    found = {"root", "sweep", "created", "metric", "also": [METRIC], "at", "better": "higher" | "lower" | null,
        "factors": [...], "states": {STATE: runs}, "baseline": NAME | null,
        "settings": [{"name", "values": {FACTOR: value}, "score": null | {"value", "low", "high"},
            "also": {METRIC: score}, "costs": {COST: mean},
            "runs": [{"name", "seed", "state", "step", "value", "also": {METRIC: value}, "costs": {COST: number}}],
            "difference": null | {"value", "low", "high", "seeds", "p_value", "p_holm", "called"}}],
        "best": null | {"setting", "next": null | {"setting", "value", "low", "high", "p_value", "seeds", "rows"}},
        "fronts": {COST: [NAME of a setting]}, "failed": [{"name", "state", "step", "error"}], "notes": [...]}

`value` of a run, `low` and `high` of a score, `p_value` and `p_holm` may be null. A difference is to the baseline, over
the seeds that both have.
"""
