"""How fast the coordinates of a head turn with the position, and what a longer context changes.

A head of width d has d/2 pairs of coordinates; pair i turns by theta^(-2i/d) a position (Su et al.,
2021). A checkpoint that was made to read more than it was first trained on slows some of them down.
Each way of doing so is a record of its numbers, with the formula of transformers'
`modeling_rope_utils`, whose results the tests compare.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float


class Linear(NamedTuple):
    """All pairs turn `factor` times as slowly (Chen et al., 2023)."""

    factor: float

    def rates(self, theta: float, width: int) -> np.ndarray:
        """Radians a position of each pair, f32[width / 2]."""
        return _first_rates(theta, width) / np.float32(self.factor)


class Llama3(NamedTuple):
    """Pairs that turn slowly, by their turns in the `original` context, are slowed (Llama 3.1)."""

    factor: float
    low: float  # with fewer turns: slowed by `factor`
    high: float  # with more turns: left as they are; in between, in between
    original: float  # positions

    def rates(self, theta: float, width: int) -> np.ndarray:
        """Radians a position of each pair, f32[width / 2]."""
        rates = _first_rates(theta, width)
        wavelength = 2 * math.pi / rates
        short, long = self.original / self.high, self.original / self.low
        slow = np.where(wavelength > long, rates / self.factor, rates)
        with np.errstate(divide="ignore", invalid="ignore"):  # high == low: nothing in between
            share = (self.original / wavelength - self.low) / np.float32(self.high - self.low)
            between = (1 - share) * slow / self.factor + share * slow
        return np.where((wavelength >= short) & (wavelength <= long), between, slow)


class Yarn(NamedTuple):
    """As `Llama3`, with a ramp over the pairs, and sharper attention (Peng et al., 2023)."""

    factor: float
    sharpness: float  # of cos and sin, so that scores grow by its square
    original: float  # positions
    fast: float  # turns in the original context above which a pair is left as it is
    slow: float  # turns below which it is slowed by `factor`
    whole: bool  # whether the ramp begins and ends at a whole number

    def rates(self, theta: float, width: int) -> np.ndarray:
        """Radians a position of each pair, f32[width / 2]."""
        rates = _first_rates(theta, width)

        def pair(turns: float) -> float:
            """The pair that makes so many turns in the original context."""
            ratio = self.original / (turns * 2 * math.pi)
            return width * math.log(ratio) / (2 * math.log(theta))

        low, high = pair(self.fast), pair(self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        high += 0.001 * (low == high)
        number = np.arange(len(rates), dtype=np.float32)
        kept = 1 - np.clip((number - low) / np.float32(high - low), 0, 1)
        return rates / np.float32(self.factor) * (1 - kept) + rates * kept


Scaling = Linear | Llama3 | Yarn


def _first_rates(theta: float, width: int) -> np.ndarray:
    return 1 / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / width)


def rates_of(theta: float, width: int, scaling: Scaling | None) -> Float[Array, "half"]:
    """Radians a position of each pair of a head of this width, float32."""
    if scaling is None:
        return theta ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return jnp.asarray(scaling.rates(theta, width), jnp.float32)


def check(theta: float, width: int, scaling: Scaling) -> None:
    """Whether positions can be turned so.

    Raises:
      ValueError: the rates are not finite.
    """
    try:
        finite = np.isfinite(scaling.rates(theta, width)).all()
    except ArithmeticError:  # a base of one turns every pair alike
        finite = False
    if not finite:
        raise ValueError(f"rope_theta={theta!r} with {scaling} turns no position by a number")


def sharpness(scaling: Scaling | None) -> float:
    """The factor of cos and sin."""
    return scaling.sharpness if isinstance(scaling, Yarn) else 1.0


# ------------------------------------------------------------------- as config.json states it


def read(rope: Mapping[str, Any], *, context: int) -> tuple[float, Scaling | None]:
    """The base, and the scaling if there is one.

    Args:
      rope: `rope_parameters` as transformers' config classes complete them.
      context: max_position_embeddings.

    Raises:
      ValueError: a kind there is no code for, or a value that is no positive number.
    """
    kind = rope.get("rope_type")
    if not isinstance(kind, str) or kind not in ("default", *_KINDS):
        raise ValueError(
            f"rope type {kind!r} is not supported, only {', '.join(['default', *_KINDS])}"
        )
    partial = rope.get("partial_rotary_factor", 1.0)
    if partial != 1.0 and (partial is not None or kind != "default"):
        raise ValueError(f"partial_rotary_factor={partial!r} is not supported, only 1.0")
    theta = float(_positive(rope, "rope_theta"))
    if kind == "yarn" and rope.get("factor") is None:
        rope = {**rope, "factor": context / _positive(rope, _ORIGINAL)}
    return theta, None if kind == "default" else _KINDS[kind](rope)


def written(theta: float, scaling: Scaling | None) -> dict[str, Any]:
    """The inverse of `read`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    match scaling:
        case Linear():
            return rope | {"rope_type": "linear", "factor": scaling.factor}
        case Llama3():
            return rope | {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                _ORIGINAL: scaling.original,
            }
        case Yarn():
            return rope | {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "attention_factor": scaling.sharpness,
                _ORIGINAL: scaling.original,
                "beta_fast": scaling.fast,
                "beta_slow": scaling.slow,
                "truncate": scaling.whole,
            }
    return rope


def _linear(rope: Mapping[str, Any]) -> Linear:
    return Linear(_positive(rope, "factor"))


def _llama3(rope: Mapping[str, Any]) -> Llama3:
    names = ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)
    return Llama3(*(_positive(rope, name) for name in names))


def _yarn(rope: Mapping[str, Any]) -> Yarn:
    factor = _positive(rope, "factor")

    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        sharp = _positive(rope, "attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        sharp = grown(_positive(rope, "mscale")) / grown(_positive(rope, "mscale_all_dim"))
    else:
        sharp = grown(1.0)
    fast, slow = (
        _positive(rope, name) if rope.get(name) else default
        for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    whole = rope.get("truncate", True)
    if whole not in (True, False, None):
        raise ValueError(f"truncate={whole!r} of the rope parameters: write true or false")
    return Yarn(factor, sharp, _positive(rope, _ORIGINAL), fast, slow, bool(whole))


_ORIGINAL = "original_max_position_embeddings"
_KINDS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _positive(rope: Mapping[str, Any], name: str) -> float:
    value = rope.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{name}={value!r} of the rope parameters: write a number above 0")
    return value
