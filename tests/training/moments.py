"""Moments of a run at which a test wants something to happen, by wrapping what the loop calls."""

from collections.abc import Callable
from typing import Any

from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.training import held_out, loop, trial
from sft_jax.training.recorder import Recorder
from sft_jax.training.rollouts import rollout


def at(moment: str, step: int, action: Callable[[], None], setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """Calls `action` at a moment of optimizer step `step`.

    The moments: `in sampling`, `sampled`, `dispatch`, `before save`, `in save`, `saved`, `in evaluation`, `before log`.
    `setattr_` may be pytest's, which undoes it.
    """
    if moment == "in sampling":
        sample = trial.Rollouts.__call__

        def wrapped_sample(self, state, done, progress):
            def watched(part, parts):
                progress(part, parts)
                if done + 1 == step and part == parts // 2:
                    action()

            return sample(self, state, done, watched)

        setattr_(trial.Rollouts, "__call__", wrapped_sample)
    elif moment == "sampled":
        write = rollout.write_samples

        def wrapped_write(workdir, at_step, lines):
            write(workdir, at_step, lines)
            if at_step == step:
                action()

        setattr_(rollout, "write_samples", wrapped_write)
    elif moment == "dispatch":
        compile_step = loop.compile_train_step

        def compile_wrapped(*arguments):
            compiled, seen = compile_step(*arguments), []

            def train_step(state, batch):
                seen.append(int(state.step) + 1)
                result = compiled(state, batch)
                if seen[-1] == step:
                    action()
                return result

            return train_step

        setattr_(loop, "compile_train_step", compile_wrapped)
    elif moment in ("before save", "in save", "saved"):
        save = Checkpoints.save

        def wrapped_save(self, at_step, arrays, position, metrics):
            if moment == "before save" and at_step == step:
                action()
            save(self, at_step, arrays, position, metrics)
            if moment != "before save" and at_step == step:
                if moment == "saved":
                    self.wait()
                action()

        setattr_(Checkpoints, "save", wrapped_save)
    elif moment == "in evaluation":
        mean_metrics = held_out.mean_metrics

        def wrapped_mean(eval_step, state, batches, *rest):
            def watched():
                for number, batch in enumerate(batches):
                    yield batch
                    if number == 0 and int(state.step) == step:
                        action()

            return mean_metrics(eval_step, state, watched(), *rest)

        setattr_(held_out, "mean_metrics", wrapped_mean)
    elif moment == "before log":
        record = Recorder.record

        def wrapped_record(self, at_step, *arguments):
            if at_step == step:
                action()
            return record(self, at_step, *arguments)

        setattr_(Recorder, "record", wrapped_record)
    else:
        raise ValueError(moment)
