"""Gated delta nets (Yang et al. 2024): layers that mix positions by a state of fixed size, in place of attention."""

from sft_jax.models.delta.net import GatedDeltaNet

__all__ = ["GatedDeltaNet"]
