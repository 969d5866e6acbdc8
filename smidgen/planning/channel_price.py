"""How many channels are worth removing beside everything else that a plan may do, at one price.

At a price λ (loss per byte, or per millisecond) a step that removes channels is taken where it costs less than λ for
what it saves, as every layer takes the form that is cheapest at λ. What a weight of a layer is worth is what the plan
without any removal pays for it: a byte and a half where it was rounded, less where it was factored. Removing channels
leaves bytes over, so the price at which all fits is lower than before. It is found here on predictions,

    lowest λ with  Σ over layers of bytes(λ) · (share of its weights that is left after the steps up to λ) ≤ limit

and the smaller network is then calibrated and planned anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from smidgen.planning.channels import Step
from smidgen.site import Channels

DECADES, HALVINGS = 8, 50  # below the highest price that are searched, and how finely


def shares_left(channels: Channels, steps: Sequence[Step]) -> dict[str, np.ndarray]:
    """The share of each layer's weights that is left after each number of steps, ``[1 + steps]``, by name."""
    keep, found = np.ones(channels.count, dtype=bool), list[list[float]]()
    for step in (None, *steps):
        if step is not None:
            keep[list(step.units)] = False
        kept = np.append(keep, True).astype(float)
        found.append([x.weights(float(kept[x.inputs].sum()), float(kept[x.outputs].sum())) for x in channels.layers])
    table = np.array(found)
    return {layer.name: table[:, i] / table[0, i] for i, layer in enumerate(channels.layers)}


def steps_worth(
    channels: Channels, steps: Sequence[Step], amounts: Callable[[float], Mapping[str, float]], limit: float,
    highest: float,
) -> int:  # fmt: skip
    """How many of the steps are taken at the lowest price at which all fits.

    Args:
        channels: of the network.
        steps: in the order they would go, from `smidgen.planning.channels.choose`.
        amounts: price → bytes, or milliseconds, of each layer as planned at that price, by name.
        limit: of their sum.
        highest: a price at which it fits.

    Returns:
        A number from 0; all that are cheap enough where it fits at no price.
    """
    shares = shares_left(channels, steps)
    prices = np.maximum.accumulate([step.price for step in steps]) if steps else np.zeros(0)

    def taken(price: float) -> int:
        return int(np.searchsorted(prices, price, side="right"))

    def fits(price: float) -> bool:
        count = taken(price)
        left = {name: float(share[count]) for name, share in shares.items()}
        return sum(value * left.get(name, 1.0) for name, value in amounts(price).items()) <= limit

    low, high = highest * 10.0**-DECADES, highest
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if fits(middle) else (middle, high)
    return taken(high)
