"""atod_jax: annealed turn-aware on-policy distillation for language-model agents, in JAX."""

import os

# transformers is used for tokenizers only; its advice to install torch would confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
