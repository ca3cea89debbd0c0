"""Steps of TRL's trainers for the benchmarks to time, and what they log.

A trainer's own loop runs in a thread and waits before each step until it is asked for: so nothing of what it does for a
step is left out. All settings that cost time without need are off: gradient checkpointing, progress bars, checkpoints.
"""

import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.torch_pairs import Pair, gradient_norm, with_whole_embedding
from benchmarks.workers import StepFunction

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
_ENDLESS = 10**6  # steps


def dpo(source: str, pairs: Sequence[Pair], size: int, **settings: Any) -> StepFunction:
    """A DPO step with adapters on so many pairs, which gives the tokens of its rows.

    Args:
        source: directory of the model.
        pairs: rows as tokens.
        size: pairs of a step.
        settings: more of `DPOConfig`.
    """
    kept = {"remove_unused_columns": False}  # the lengths, by which pairs may be grouped
    arguments = _quiet("DPOConfig", per_device_train_batch_size=size, max_steps=_ENDLESS, **kept, **settings)
    trainer = _dpo_trainer(source, pairs, arguments, adapters=True)
    return Paced(trainer, lambda inputs: float(inputs["attention_mask"].sum()))


def first_dpo_steps(source: str, steps: Sequence[Sequence[Pair]], **settings: Any) -> np.ndarray:
    """[steps, 5]: loss, margin, rewards of the preferred and of the other answer, norm of the gradient.

    All weights are trained, at a constant rate.

    Args:
        source: directory of the model.
        steps: the pairs of each.
        settings: more of `DPOConfig`: the optimizer.
    """
    alike = {"max_steps": len(steps), "train_sampling_strategy": "sequential", "logging_steps": 1}
    arguments = _quiet("DPOConfig", per_device_train_batch_size=len(steps[0]), **alike, **settings)
    trainer = _dpo_trainer(source, [pair for pairs in steps for pair in pairs], arguments, adapters=False)
    with_whole_embedding(trainer.model)
    norms, clip = [], trainer.accelerator.clip_grad_norm_

    def measured(parameters, *arguments, **named):
        parameters = list(parameters)
        norms.append(gradient_norm(parameters))
        return clip(parameters, *arguments, **named)

    trainer.accelerator.clip_grad_norm_ = measured
    trainer.train()
    names = ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected")
    logged = [[line[name] for name in names] for line in trainer.state.log_history if "loss" in line]
    return np.array([[*line, norm] for line, norm in zip(logged, norms, strict=True)])


def grpo(source: str, prompts: Sequence[str], every_step: bool = True, **settings: Any) -> StepFunction:
    """A GRPO step with adapters, answers by transformers' `generate`, which gives the number of answers.

    Args:
        source: directory of the model.
        prompts: what is asked.
        every_step: sample new answers for every step; otherwise all are trained on those of the first.
        settings: more of `GRPOConfig`.
    """
    import peft
    import trl
    from datasets import Dataset

    class Trainer(trl.GRPOTrainer):
        kept: Mapping[str, Any] | None = None

        def _generate_and_score_completions(self, inputs):
            if every_step or self.kept is None:
                self.kept = super()._generate_and_score_completions(inputs)
            return dict(self.kept)

    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts])
    arguments = _quiet("GRPOConfig", max_steps=_ENDLESS, beta=0.0, scale_rewards="none", **settings)
    trainer = Trainer(source, vowels_of, arguments, train_dataset=rows, peft_config=peft.LoraConfig(**LORA))
    return Paced(trainer, lambda inputs: float(len(inputs["completion_ids"])))


def vowels_of(completions, **_: object) -> list[float]:
    """The reward of the benchmarks, for TRL."""
    return [share_of_vowels(completion[0]["content"]) for completion in completions]


def vowels(answer: str, _: object) -> dict[str, float]:
    """The same as a scorer of ours."""
    return {"vowels": share_of_vowels(answer)}


def share_of_vowels(text: str) -> float:
    """Among the letters; something that answers differ in."""
    return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


class Paced:
    """The steps of a trainer, one each time it is called; gives what `count` says of the step's inputs."""

    def __init__(self, trainer, count):
        from transformers import TrainerCallback

        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._counted, self._error = 0.0, None
        paced, take = self, trainer.compute_loss

        class Turns(TrainerCallback):
            def on_step_begin(self, *_, **__):
                paced._go.acquire()

            def on_step_end(self, *_, **__):
                paced._done.release()

        def counted(model, inputs, *arguments, **names):
            self._counted = count(inputs)
            return take(model, inputs, *arguments, **names)

        trainer.compute_loss = counted
        trainer.add_callback(Turns())
        threading.Thread(target=self._train, args=(trainer,), daemon=True).start()

    def _train(self, trainer) -> None:
        try:
            trainer.train()
            self._error = RuntimeError("the trainer has come to its end")
        except Exception as error:  # noqa: BLE001  whatever it is, the thread that waits raises it
            self._error = error
        self._done.release()

    def __call__(self) -> float:
        """Takes a step.

        Raises:
            RuntimeError: the trainer has ended; its error is the cause.
        """
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise RuntimeError("TRL took no step") from self._error
        return self._counted


def _dpo_trainer(source: str, pairs: Sequence[Pair], arguments, *, adapters: bool):
    """A trainer of those very tokens: its own tokenization, which also trains the newline behind an answer's end, is
    left out."""
    import peft
    import trl
    from datasets import Dataset

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, pair, strict=True)) | {"length": sum(map(len, pair))} for pair in pairs]
    more = {"peft_config": peft.LoraConfig(**LORA)} if adapters else {}
    return Trainer(source, args=arguments, train_dataset=Dataset.from_list(rows), **more)


def _quiet(name: str, **settings: Any):
    """A config of TRL's that trains in float32 on the CPU, and does nothing beside."""
    os.environ["TQDM_DISABLE"] = "1"
    import datasets
    import transformers
    import trl

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    common = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"},
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": _ENDLESS,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return getattr(trl, name)(**(common | settings))
