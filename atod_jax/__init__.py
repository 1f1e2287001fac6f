"""atod_jax: annealed turn-aware on-policy distillation for language-model agents, in JAX."""

import os
import signal
import sys

# transformers is used for tokenizers only; its advice to install torch would confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# `python -m atod_jax.…` and `atod …` load for seconds. Until a program itself listens to Ctrl-C, it
# ends at once and without a traceback: nothing can be lost yet.
_STARTS = os.path.basename(sys.argv[0]) in ("-m", "atod") if sys.argv else False
if _STARTS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
