"""Supervised fine-tuning of language models in JAX."""
