"""Integer tables of the adaptive coder: logistic function, its inverse, learning shares and a prior by scale.

    squash[d + EDGE] = 65536 σ(d/256),   stretch[p] ≈ 256 ln(p/(1−p)) at p = (i + ½)/4096
    share[n] = 65536 / (n + 3/2)                           how far the n-th observation moves a counter
    prior[l] = stretch of each binary decision on |w|, were w a discretised Laplace variable of mean size e(l)

For |w| with P(|w| ≥ 1) = t and P(|w| ≥ k+1 | |w| ≥ k) = ρ = t² (Laplace, rounded to nearest), the mean is t/(1 − t²),
so t = (√(1 + 4e²) − 1)/(2e): no exponential is needed, and every number here comes from Python integers alone. Floats
that another libm might round otherwise would make two machines decode two networks from one file.

The mixing in the logistic domain is that of PAQ: Mahoney, "Adaptive weighing of context models for lossless data
compression", Florida Tech CS-2005-16.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from math import isqrt

import numpy as np
from jaxtyping import Int32

# Bounds of the logistic domain: 11 nats, where a 16-bit probability ends.
EDGE = 2816
# Scales: four an octave of the mean size in 1/4096, up to 2^20.
LEVELS = 128
# Decisions with a prior: zero or not, one more or not, 32 prefixes and 32 mantissa bits of an exponential Golomb code.
KINDS = 66
SHADES = 16
# How strongly a predicted value of half-octave ratio i to the scale leans on the sign, 640 · 2^((8i − 68)/16), capped:
# 2.5 nats at a ratio of 1, found on ResNet-20.
LEAN = (34, 48, 68, 95, 135, 190, 269, 381, 538, 761, 1076, 1500, 1500, 1500, 1500, 1500)
_ONE = 1 << 60


@lru_cache(maxsize=1)
def tables() -> Int32[np.ndarray, " entries"]:
    """All tables in one array: squash, stretch, share, prior (levels × kinds), lean.

    >>> tables().shape
    (19217,)
    """
    odds = _odds()
    half = [(value << 16) // (value + _ONE) for value in odds]
    squash = [min(max(value, 1), 65535) for value in [65536 - value for value in half[:0:-1]] + half]
    stretch = [_logit(odds, 2 * i + 1, 8192) for i in range(4096)]
    share = [131072 // (2 * n + 3) for n in range(1024)]
    prior = [value for level in range(LEVELS) for value in _prior(odds, level)]
    everything = np.array([*squash, *stretch, *share, *prior, *LEAN], np.int32)
    everything.flags.writeable = False
    return everything


def _odds() -> list[int]:
    """e^(k/256) for k = 0 … EDGE in 60-bit fixed point."""
    step, term, k = _ONE, _ONE, 1
    while term:
        term //= 256 * k
        step, k = step + term, k + 1
    powers = [_ONE]
    for _ in range(EDGE):
        powers.append(powers[-1] * step >> 60)
    return powers


def _logit(odds: list[int], part: int, whole: int) -> int:
    """256 ln(part/(whole − part)), rounded away from zero and held inside the domain."""
    other = whole - part
    if part < other:
        return -_logit(odds, other, whole)
    if part == other:
        return 0
    return EDGE if other <= 0 else min(bisect_left(odds, (part << 60) // other), EDGE)


def _prior(odds: list[int], level: int) -> list[int]:
    """Stretched chances of every decision at mean size e = 2^(level/4 − 12), the middle of the level."""
    twice = 2 * (4 + (level & 3)) + 1
    mean = (twice << (level >> 2) << 60) >> 15
    positive = ((isqrt(_ONE * _ONE + 4 * mean * mean) - _ONE) << 60) // (2 * mean)
    ratio = positive * positive >> 60
    prefixes, mantissas, power = [], [], ratio
    for _ in range(32):
        prefixes.append(_logit(odds, power, _ONE))
        mantissas.append(_logit(odds, power, _ONE + power))
        power = power * power >> 60
    return [_logit(odds, positive, _ONE), _logit(odds, ratio, _ONE), *prefixes, *mantissas]
