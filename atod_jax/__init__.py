"""atod_jax: annealed turn-aware on-policy distillation for language-model agents, in JAX."""

__version__ = "0.1.0"
