"""The head on a card against full logits in float64: one sweep over all vocabulary rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_logits import assert_close, case, reference, value_and_gradients

from atod_jax.core.fused import HeadConfig

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("block", [0, 64], ids=["one block", "blocks"])
@pytest.mark.parametrize("with_teacher", [False, True], ids=["alone", "teacher"])
@pytest.mark.parametrize("early", [True, False], ids=["head_loss", "token_stats"])
def test_head_and_its_gradients(block, with_teacher, early):
    """bfloat16, whose products are exact in float32, so only gradients are rounded."""
    *args, teacher = case(3, jnp.bfloat16, shape=(16, 20), vocab=5_003)
    teacher = teacher if with_teacher else None
    cfg = HeadConfig(temperature=0.7, vocab=4_900, forbidden=(0, 2), block=block)
    stats, grads, *rest = value_and_gradients(*args, teacher, cfg=cfg, capacity=250, early=early)
    want, wide, *exact = reference(*args, teacher, cfg=cfg)
    assert_close(stats, want)
    assert_close(rest, exact)
    assert_close(grads, wide, rtol=1e-2)  # bfloat16 keeps 8 bits


def test_a_large_vocabulary_runs_in_little_memory():
    """151,936 rows: as many tokens as two blocks hold, beside the same in float64 for a few."""
    *args, _ = case(4, jnp.bfloat16, shape=(64, 64), vocab=151_936, share=1.0)
    stats, grads, *_ = value_and_gradients(*args, None, cfg=HeadConfig())
    few = [x[:1, :8] for x in (args[0], *args[2:])]
    want, *_ = reference(few[0], args[1], *few[1:], None, cfg=HeadConfig())
    assert_close(jax.tree.map(lambda x: x[:1, :8], stats), want)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in grads)
