"""atod_jax: annealed turn-aware on-policy distillation for language-model agents, in JAX."""

import os
import signal
import sys
import threading
from typing import Any

from jaxlib.version import __version__ as _jaxlib

# transformers is used for tokenizers only; its advice to install torch would confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# Two jaxlibs hand sums on a CPU to YNNPACK, which may err or crash (jax-ml/jax#39103, #39257):
# the gradient of an RMSNorm, mapped over several cotangents, mixed them. Nothing is slower without.
_SUMS, _given = "--xla_cpu_experimental_ynn_fusion_type=", os.environ.get("XLA_FLAGS", "")
_NAMES_A_FILE = _given and not _given.lstrip().startswith("-")
if _jaxlib in ("0.10.2", "0.11.0") and _SUMS not in _given and not _NAMES_A_FILE:
    os.environ["XLA_FLAGS"] = f"{_given} {_SUMS}".strip()

# `python -m atod_jax.…` and `atod …` load for seconds. Until a program itself listens to Ctrl-C, it
# ends at once and without a traceback: nothing can be lost yet.
_STARTS = os.path.basename(sys.argv[0]) in ("-m", "atod") if sys.argv else False
if _STARTS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

_told = set[str]()


def _tell(failed: Any) -> None:
    """Once, in one line: a thread or a destructor of a library has failed, most often after what
    the program says itself, such as that the disk is full."""
    reason = " ".join(str(failed.exc_value).split())[:200]
    text = f"in the background: {failed.exc_type.__name__}: {reason}"
    if text not in _told:
        _told.add(text)
        print(text, file=sys.stderr, flush=True)


if _STARTS and not os.environ.get("ATOD_TRACEBACK"):
    sys.unraisablehook = threading.excepthook = _tell

__version__ = "0.1.0"
