"""Answers that a run samples from the model it trains: prompts, sampling, rewards, advantages, and the batch of a step.

`Rollouts` (rollout.py) does one step of it. What answers are worth is in rewards.py, what is kept of them in
samples.py.
"""
