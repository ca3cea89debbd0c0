"""Results made by hand, of the form in the package's docstring."""

EVIL = "</script><img src=x onerror=alert(1)> | `a` *b* [c](d) & \u202eevil\ud800 _x_ $y$"


def score(value, margin=0.1):
    return {"value": value} if margin is None else {"value": value, "low": value - margin, "high": value + margin}


def method(weights="base", **changed):
    training = {
        "tokens": 1_234_567,
        "supervised_tokens": 98_765,
        "seconds": 412.0,
        "steps": 120,
        "parameters_changed": 1_000,
        "parameters": 100_000,
    }
    described = {
        "description": "what it does",
        "weights": weights,
        "model": "tiny",
        "prompt_tokens": 110.0,
        "generated_tokens": 40.0,
        "seconds": 0.5,
        "requests": 60,
        "cut_prompts": 0,
        "training": training if weights == "tuned" else None,
    }
    return described | changed


def comparison(first, second, value, p_holm, metric="exact_match", **changed):
    pair = {"first": first, "second": second, "metric": metric, **score(value), "p_value": p_holm / 2}
    return pair | {"p_holm": p_holm, "test": "exact McNemar"} | changed


def task(scores, comparisons=(), primary="exact_match", **changed):
    """`scores`: method -> value of the primary metric, or all its scores."""
    made = {name: given if isinstance(given, dict) else {primary: score(given)} for name, given in scores.items()}
    described = {
        "kind": "generate",
        "data": "held_out.jsonl",
        "examples": 60,
        "primary": primary,
        "dropped": 0,
        "scores": made,
        "comparisons": list(comparisons),
        "details": {},
        "notes": [],
        "examples_needed": None,
    }
    return described | changed


def results_of(methods, tasks, **changed):
    """`methods`: name -> weights, or a whole description."""
    made = {name: method(given) if isinstance(given, str) else given for name, given in methods.items()}
    described = {"created": "2026-11-29", "seed": 3, "methods": made, "tasks": tasks}
    return described | dict.fromkeys(("retrieval", "forgetting", "drift", "divergence", "gate")) | changed


def rows(answers, prompt="What?", reference="yes", group="", name="t"):
    """The answers of one method, which are right where they are the reference."""
    return [
        {
            "id": f"{name}:{number}",
            "prompt": prompt,
            "answer": answer,
            "reference": reference,
            "group": group,
            "outcome": {"exact_match": answer == reference},
            "finish_reason": "stop",
        }
        for number, answer in enumerate(answers, 1)
    ]


def everything():
    """Results in which everything there can be is there: a tuned method that is better than base and worse than rag."""
    named = {"base": "base", "rag": method(prompt_tokens=1_600.0, cut_prompts=2), "sft": "tuned"}
    pairs = [comparison("base", "sft", 0.4, 0.0002), comparison("rag", "sft", -0.2, 0.01)]
    pairs.append(comparison("base", "sft", -0.5, 0.001, "held_out_loss", test="paired permutation"))
    scores = {"base": 0.1, "rag": 0.7, "sft": {"exact_match": score(0.5), "held_out_loss": score(0.75, None)}}
    confusion = {"columns": ["expected", "yes", "no"], "rows": [["yes", 12, 1], ["no", 0, 0.5]]}
    extraction = task(scores, pairs, dropped=2, details={"sft": {"confusion": confusion}}, notes=["A note."])
    arithmetic = task({"base": 0.5, "sft": 0.4}, [comparison("base", "sft", -0.1, 0.2)], examples_needed=1_400)
    return results_of(
        named,
        {"extraction": extraction},
        retrieval={"recall@1": score(0.8)},
        forgetting={"arithmetic": arithmetic},
        drift=[
            {"layer": str(n), "kind": kind, "relative": 0.01 * n} for n in range(3) for kind in ("attention", "mlp")
        ],
        divergence={"kl_base_tuned": score(0.2)},
        gate={"max_regression": 0.02, "failed": ["arithmetic"]},
    )
