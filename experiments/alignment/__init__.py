"""What may follow fine-tuning: DPO on a model's own answers, and reinforcement learning with a verifiable reward.

`stages.py` has a function for each stage, which takes a model and gives one; `run.py` says in which order they stand;
`report.py` compares what came of them. See README.md.
"""
