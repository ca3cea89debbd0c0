"""The model card of an export (README.md): its base and data, its config, and what training and evaluation measured."""

import functools
import json
from pathlib import PurePath
from typing import Any

from etils import epath

from sft_jax.evaluation.report.write import RESULTS
from sft_jax.exports.golden import Golden
from sft_jax.exports.source import ExportSource
from sft_jax.runs.metric_log import FILE, read_metrics
from sft_jax.runs.workdir import ENVIRONMENT

_MEASURED = ("held_out/", "train/loss", "progress/tokens", "progress/examples")
_PATHS = ("data.train", "data.held_out", "data.cache", "data.retrieval.corpus")
_PATHS += ("model.source", "model.chat_template", "adapter.initial")

_SCORING = """## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
scores = model(**batch).logits[:, 0]
```

The score is that of a whole conversation, read at its last token; of two answers to the same prompt the better one has
the higher score. `golden.json` has a conversation with its ids and its score, to compare a loaded model with."""


def model_card(source: ExportSource, golden: Golden, kind: str, notes: list[str]) -> str:
    """Markdown with the front matter that the hub reads.

    Directories of the machine it was trained on are not named: of paths it has the last part.

    Args:
        source: what is exported.
        golden: for the example of how it is used.
        kind: `model` or `adapter`.
        notes: lines about how it was exported.
    """
    parts = [_front_matter(source, kind), f"# {_title(source)}", _origin(source), _usage(source, golden, kind)]
    if source.run is not None:
        # Evaluations do not say whether they are of the result or of a mix.
        evaluations = _evaluations(source.run.directory) if source.mix == 1 else ""
        parts += [_results(source), evaluations, _config(source)]
    parts.append("## Export\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def mix_note(mix: float) -> str:
    """What weights between a base and a result are, in a line."""
    return f"Weights between the base and the result of the run: base + {mix:g} x (result - base)."


def _front_matter(source: ExportSource, kind: str) -> str:
    task = "text-generation" if source.base.wrapper is None else "image-text-to-text"
    task = "text-classification" if source.decoder.scores else task
    fields = {"library_name": "peft" if kind == "adapter" else "transformers", "pipeline_tag": task}
    if _is_hub_name(source.base.name):
        fields["base_model"] = source.base.name
    tags = ["reward-model" if source.decoder.scores else "sft"] + (
        [source.adapter.method] if source.adapter and source.adapter.method != "none" else []
    )
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not epath.Path(name).exists()


def _title(source: ExportSource) -> str:
    if source.run is None:
        return PurePath(source.name).name
    mixed = "" if source.mix == 1 else f", mix {source.mix:g}"
    return f"{source.run.directory.name}, step {source.run.step}{mixed}"


def _origin(source: ExportSource) -> str:
    base = source.base
    lines = [f"Base model: `{_short(base.name)}`" + (f" at `{base.revision}`" if base.revision else "")]
    lines.append(f"Fingerprint of its weights: `{base.fingerprint}`")
    if source.run is not None:
        environment = json.loads((source.run.directory / ENVIRONMENT).read_text())
        for name, value in environment["fingerprints"].items():
            if name != "model":
                lines.append(f"Fingerprint of the data, `{name}`: `{value}`")
        lines.append(f"Trained with: {', '.join(f'{n} {v}' for n, v in environment['packages'].items())}")
        if commit := environment["git"].get("commit"):
            lines.append(f"Code: commit `{commit}`" + (", changed since" if environment["git"]["modified"] else ""))
        kind = "an average over the steps" if source.weights == "ema" else "of the last step"
        lines.append(f"Weights: {kind}" + ("" if source.mix == 1 else f", mixed with the base's by {source.mix:g}"))
    return "\n".join(f"- {line}" for line in lines)


def _usage(source: ExportSource, golden: Golden, kind: str) -> str:
    if source.decoder.scores:
        return _SCORING
    adapted = kind == "adapter"
    loader = "AutoModelForCausalLM" if source.base.wrapper is None else "AutoModelForImageTextToText"
    model = _short(source.base.name) if adapted else "DIRECTORY"
    stops = ", ".join(f"{i} ({source.tokenizer.convert_ids_to_tokens(i)})" for i in golden.stop_ids)
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            f"from transformers import {loader}, AutoTokenizer",
            *(["from peft import PeftModel"] if adapted else []),
            "",
            f'model = {loader}.from_pretrained("{model}")',
            *(['model = PeftModel.from_pretrained(model, "DIRECTORY")'] if adapted else []),
            'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")',
            "```",
            "",
            f"Answers end with the ids {stops or '(none is known)'}. `golden.json` has a conversation with its ids and "
            "the likeliest next tokens after it, to compare a loaded model with.",
        ]
    )


def _results(source: ExportSource) -> str:
    """What the run measured last up to this step."""
    path = source.run.directory / FILE
    if not path.exists():
        return ""
    found: dict[str, tuple[int, float]] = {}
    for logged in read_metrics(path):
        if logged["step"] <= source.run.step:
            found |= {
                name: (logged["step"], value)
                for name, value in logged.items()
                if name.startswith(_MEASURED) and isinstance(value, int | float)
            }
    if not found:
        return ""
    lines = [f"| {name} | {value:.6g} | {step} |" for name, (step, value) in sorted(found.items())]
    mixed = [] if source.mix == 1 else ["Of the result of the run, not of these weights between it and the base.", ""]
    return "\n".join(["## Measured in training", "", *mixed, "| | | step |", "|---|---:|---:|", *lines])


def _evaluations(directory: epath.Path) -> str:
    """Of `sft_jax.evaluate`, where it wrote into the run directory."""
    lines = []
    for path in sorted(directory.glob(f"*/{RESULTS}")):
        for task, found in json.loads(path.read_text())["tasks"].items():
            for method, scores in found["scores"].items():
                for name, score in scores.items():
                    interval = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
                    lines.append(f"| {path.parent.name} | {task} | {method} | {name} | {interval} |")
    if not lines:
        return ""
    return "\n".join(
        ["## Evaluations", "", "| | task | method | | value and 95 % interval |", "|---|---|---|---|---|", *lines]
    )


def _config(source: ExportSource) -> str:
    config = source.run.config.copy_and_resolve_references()
    with config.unlocked():
        for name in _PATHS:
            *sections, field = name.split(".")
            section = functools.reduce(lambda found, part: found.get(part, {}), sections, config)
            if field in section:  # a run of earlier code has not all of them
                section[field] = _short(section[field])
        config.data.benchmarks = tuple(_short(path) for path in config.data.get("benchmarks", ()))
        for source in config.data.get("mixture", {}).values():
            source.path = _short(source.path)
    return "## Config\n\n```json\n" + json.dumps(config.to_dict(), indent=2, default=list) + "\n```"


def _short(name: Any) -> str:
    """A path's last part; names of the hub as they are."""
    return name if not name or _is_hub_name(name) else PurePath(name).name
