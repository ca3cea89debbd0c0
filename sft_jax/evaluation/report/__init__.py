"""The report of an evaluation: from the results, as plain JSON values, to what people look at.

verdicts.py says in words what is shown and what is not; tables.py makes tables of text, which markdown.py and page.py
write out; terminal.py prints the ones for a terminal; plots.py draws, in the style of drawing.py; rows.py puts the
answers of all methods to a row side by side for the page; tensorboard.py gives what goes into a log; write.py writes
the files of a directory.

All of it but write.py is pure functions of

    results = {"created", "seed",
        "methods": {METHOD: {"description", "weights": "base" | "tuned", "model", "prompt_tokens", "generated_tokens",
            "seconds", "requests", "cut_prompts", "training": null | {"tokens", "supervised_tokens", "seconds", "steps",
            "parameters_changed", "parameters"}}},
        "tasks": {TASK: {"kind": "generate" | "choose", "data", "examples", "primary", "dropped",
            "scores": {METHOD: {METRIC: {"value", "low", "high"}}},
            "comparisons": [{"first", "second", "metric", "value", "low", "high", "p_value", "p_holm", "test"}],
            "details": {METHOD: {TITLE: {"columns", "rows"}}}, "notes": [...], "examples_needed": int | null}},
        "retrieval": null | {METRIC: {"value", "low", "high"}},
        "forgetting": null | {TASK: as in "tasks"},
        "drift": null | [{"layer", "kind", "relative"}], "divergence": null | {NAME: {"value", "low", "high"}},
        "gate": null | {"max_regression", "failed": [...]}}

    answers = {TASK: {METHOD: [{"id", "prompt": str | messages, "answer", "reference", "outcome", "group",
        "finish_reason"}]}}

`prompt_tokens`, `generated_tokens` and `seconds` are means over requests. A comparison is `second - first`. The limits
of an interval may be absent. The lists of answers of a task have the same rows in the same order.
"""
