"""From logits to what is said of a token, and from gradients of that to gradients of the logits.

Per token, with logits z (student) and y (teacher) of some vocabulary rows:
    top = max z          exp_sum = sum exp(z - top)      weighted = sum exp(z - top) (z - top)
    teacher_top = max y  teacher_exp_sum = sum exp(y - teacher_top)
    cross = sum exp(z - top) ((z - top) - (y - teacher_top))
so that log Z = top + log exp_sum, H = log exp_sum - weighted / exp_sum, and
KL(student || teacher) = cross / exp_sum - log exp_sum + log teacher_exp_sum. Everything is relative
to the maxima, so nothing large is subtracted from anything large.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from atod_jax.types import TokenStats

LOWEST = -1e30  # finite: exp is exactly 0, and 0 * (it - x) stays 0


class Logits(NamedTuple):
    """Of some tokens over some vocabulary rows, float32."""

    student: Float[Array, "T V"]
    teacher: Float[Array, "T V"] | None
    hit: Bool[Array, "T V"]  # true where the row is the token's action


class Tops(NamedTuple):
    """Largest logits."""

    student: Float[Array, "*T"]
    teacher: Any = None  # the same, where there is a teacher


class Sums(NamedTuple):
    """Sums over vocabulary rows, relative to `Tops`."""

    exp: Float[Array, "*T"]
    weighted: Float[Array, "*T"]
    action: Float[Array, "*T"]  # logit of the action, 0 if it is not among the rows
    teacher_exp: Any = None  # the same, these three where there is a teacher
    teacher_action: Any = None
    cross: Any = None


class Partial(NamedTuple):
    """What is known of tokens from some of the vocabulary rows."""

    tops: Tops
    sums: Sums


def look(x: Logits) -> Partial:
    """What a tile of logits says of its tokens.

    A CPU has the tile in its cache and finds the maxima first, which saves exponentials; an
    accelerator has it in memory and reads it but once, so the maxima move along.
    """
    return in_two_sweeps(x) if jax.default_backend() == "cpu" else in_one_sweep(x)


def merge(parts: Partial, *, axis: int) -> Partial:
    """What is known from the disjoint sets of rows along an axis together."""
    lowest = jax.tree.map(lambda _: jnp.float32(LOWEST), parts.tops)
    nothing = jax.tree.map(lambda _: jnp.float32(0), parts.sums)

    def two(a: Partial, b: Partial) -> Partial:
        tops = jax.tree.map(jnp.maximum, a.tops, b.tops)
        return Partial(tops, jax.tree.map(jnp.add, _relative_to(tops, a), _relative_to(tops, b)))

    return jax.lax.reduce(parts, Partial(lowest, nothing), two, (axis,))


def merge_devices(part: Partial, axis: str) -> Partial:
    """The same for the sets of the devices along a mesh axis."""
    tops = jax.lax.pmax(part.tops, axis)
    return Partial(tops, jax.lax.psum(_relative_to(tops, part), axis))


def in_one_sweep(x: Logits) -> Partial:
    """Every row is a set of its own, and all sets are merged."""
    z, y, hit = x
    one, zero = jnp.ones_like(z), jnp.zeros_like(z)
    sums = Sums(exp=one, weighted=zero, action=jnp.where(hit, z, 0.0))
    if y is not None:
        action = jnp.where(hit, y, 0.0)
        sums = sums._replace(teacher_exp=one, teacher_action=action, cross=zero)
    return merge(Partial(Tops(z, y), sums), axis=1)


def in_two_sweeps(x: Logits) -> Partial:
    """Largest logits, then sums."""
    z, y, hit = x
    tops = Tops(jnp.max(z, axis=1), None if y is None else jnp.max(y, axis=1))
    centred = z - tops.student[:, None]
    weight = jnp.exp(centred)
    sums = Sums(
        exp=jnp.sum(weight, axis=1),
        weighted=jnp.sum(weight * centred, axis=1),
        action=jnp.sum(jnp.where(hit, z, 0.0), axis=1),
    )
    if y is None:
        return Partial(tops, sums)
    teacher_centred = y - tops.teacher[:, None]
    sums = sums._replace(
        teacher_exp=jnp.sum(jnp.exp(teacher_centred), axis=1),
        teacher_action=jnp.sum(jnp.where(hit, y, 0.0), axis=1),
        cross=jnp.sum(weight * (centred - teacher_centred), axis=1),
    )
    return Partial(tops, sums)


def _relative_to(tops: Tops, part: Partial) -> Sums:
    """The sums of `part` relative to other maxima, not below its own."""
    sums, lift = part.sums, jax.tree.map(jnp.subtract, part.tops, tops)  # <= 0
    keep = jnp.exp(lift.student)
    lifted = sums._replace(
        exp=keep * sums.exp, weighted=keep * (sums.weighted + sums.exp * lift.student)
    )
    if lift.teacher is None:
        return lifted
    return lifted._replace(
        teacher_exp=jnp.exp(lift.teacher) * sums.teacher_exp,
        cross=keep * (sums.cross + sums.exp * (lift.student - lift.teacher)),
    )


def stats_of(part: Partial) -> TokenStats:
    """The statistics [T], once all vocabulary rows are in."""
    tops, sums = part
    log_sum = jnp.log(sums.exp)
    stats = TokenStats(
        logp=sums.action - tops.student - log_sum, entropy=log_sum - sums.weighted / sums.exp
    )
    if tops.teacher is None:
        return stats
    teacher_log_sum = jnp.log(sums.teacher_exp)
    return stats.replace(
        teacher_logp=sums.teacher_action - tops.teacher - teacher_log_sum,
        reverse_kl=sums.cross / sums.exp - log_sum + teacher_log_sum,
    )


def logit_gradient(
    x: Logits, part: Partial, *, stats: TokenStats, ct: TokenStats
) -> Float[Array, "T V"]:
    """dL/dz = g_lp (1[a] - p) - g_H p (log p + H) + g_KL p (log p - log q - KL)."""

    def column(v):
        return v[:, None]

    logp = x.student - column(part.tops.student + jnp.log(part.sums.exp))
    slope = column(ct.entropy) * (logp + column(stats.entropy)) + column(ct.logp)
    if x.teacher is not None:
        teacher_logp = x.teacher - column(part.tops.teacher + jnp.log(part.sums.teacher_exp))
        slope -= column(ct.reverse_kl) * (logp - teacher_logp - column(stats.reverse_kl))
    return jnp.where(x.hit, column(ct.logp), 0.0) - jnp.exp(logp) * slope
