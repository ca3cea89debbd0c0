"""Supervised fine-tuning of language models in JAX."""

import os

if "TRANSFORMERS_VERBOSITY" not in os.environ:
    # transformers advises to install PyTorch when it is imported, which its tokenizers do not need. Its warnings stay.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
