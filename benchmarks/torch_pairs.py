"""DPO as a plain torch loop: two models, and a row for each answer; nothing of ours but the order of the pairs."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Token ids: of the prompt, and of either answer up to its last token that is trained."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pairs_of(examples) -> list[Pair]:
    """Those of tokenized pairs, in their order.

    Raises:
        ValueError: an answer has a token before its last one that is not trained.
    """
    return [_pair(examples, number) for number in range(len(examples))]


def _pair(examples, number: int) -> Pair:
    (tokens, weights), branches = examples.example(number), examples.branches_of(number)
    answers = []
    for branch in (1, 2):
        ids, trained = tokens[branches == branch], weights[branches == branch] > 0
        end = int(np.count_nonzero(trained))
        if not trained[:end].all():
            raise ValueError(f"{examples.ids[number]}: answer {branch} is not trained up to its last token")
        answers.append(ids[:end].tolist())
    return Pair(tokens[branches == 0].tolist(), *answers)


def torch_dpo_steps(
    policy: Any,
    reference: Any,
    steps: Sequence[Sequence[Pair]],
    *,
    beta: float,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    clip_norm: float = 1.0,
) -> np.ndarray:
    """Trains `policy` by AdamW at a constant rate, without decay.

    Args:
        policy: a causal model of transformers, float32.
        reference: another one with the same weights.
        steps: the pairs of each step.
        beta: of DPO.
        learning_rate: of all steps.
        betas: of AdamW.
        epsilon: of AdamW.
        clip_norm: norm to which a gradient is cut.

    Returns:
        [steps, 5]: loss, margin, rewards of the preferred and of the other answer, norm of the gradient.
    """
    import torch

    optimizer = torch.optim.AdamW(policy.parameters(), learning_rate, tuple(betas), epsilon, weight_decay=0.0)
    found = []
    for pairs in steps:
        chosen, rejected = [], []
        for pair in pairs:
            for rewards, answer in ((chosen, pair.chosen), (rejected, pair.rejected)):
                with torch.no_grad():
                    base = _log_probability(reference, pair.prompt, answer)
                rewards.append(beta * (_log_probability(policy, pair.prompt, answer) - base))
        chosen, rejected = torch.stack(chosen), torch.stack(rejected)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = gradient_norm(policy.parameters())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), clip_norm)
        optimizer.step()
        means = [(chosen - rejected).mean(), chosen.mean(), rejected.mean()]
        found.append([*(value.item() for value in (loss, *means)), norm])
    return np.array(found)


def with_whole_embedding(model: Any) -> Any:
    """The model, whose embedding has a gradient in every row.

    Of the row of the pad token torch leaves out what reading the token gives. The pad token of SmolLM2 ends each turn.
    """
    model.get_input_embeddings().padding_idx = None
    return model


def gradient_norm(parameters: Iterable[Any]) -> float:
    """The norm of the gradient, summed in float64.

    What torch clips by is summed in float32, and may lose the many small squares of a large embedding.
    """
    squares = [parameter.grad.double().square().sum() for parameter in parameters if parameter.grad is not None]
    return float(sum(squares)) ** 0.5


def _log_probability(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """Of an answer behind its prompt: the sum over its tokens."""
    import torch

    ids = torch.tensor([*prompt, *answer])[None]
    log_probabilities = torch.log_softmax(model(ids).logits[0, :-1], -1)
    return log_probabilities.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()
