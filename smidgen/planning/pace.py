"""What the layers' times say of a plan: forms that would be slower are left out, the whole file's time is predicted.

    predicted ms = the original's ms − Σ over sites (ms of the layer as it is − ms of the form it takes)

A layer timed alone pays for its call and for reordering its inputs, as both its forms do: the difference is free of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from smidgen.planning.candidates import Options
from smidgen.planning.plan import Choice, Plan

# How much slower than the layer it replaces a form must measure to be left out: a layer timed in turns with itself
# differs by this in one of 20 cases (six layers of 5 to 380 µs, 144 pairs, two cores with four times their load).
TOLERANCE = 0.03


def guarded(options: Sequence[Options]) -> list[Options]:
    """The options without forms that measured slower than the layer they replace.

    Args:
        options: of every site; those without times stay as they are.

    Returns:
        Options whose refusals say which methods lost all their forms by it, and by how much at best.
    """
    return [_guarded(option) for option in options]


def _guarded(option: Options) -> Options:
    if option.times is None:
        return option
    slower = option.times > (1 + TOLERANCE) * option.times[0]
    if not slower.any():
        return option
    kept = np.flatnonzero(~slower)
    refusals = dict(option.refusals)
    for method in dict.fromkeys(label.method for label in option.labels[1:]):
        places = [i for i, label in enumerate(option.labels) if label.method == method and i > 0]
        if method is not None and slower[places].all():
            refusals[method] = f"{method}: {_slower(float(option.times[places].min()), float(option.times[0]))}"
    return replace(option.only(kept.tolist()), refusals=refusals)


def _slower(ms: float, before_ms: float) -> str:
    return f"would be slower: {_digits(ms)} ms against {_digits(before_ms)} ms"


def _digits(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def saved_ms(options: Sequence[Options], plan: Plan) -> float:
    """Milliseconds that a plan is predicted to save, by the times of its layers; negative where it would be slower.

    Args:
        options: of every site.
        plan: choices among them.
    """
    told = [option_times(option, choice) for option, choice in zip(options, plan.choices, strict=True)]
    return sum((each["latency_ms_before"] - each["latency_ms_after"] for each in told if each), 0.0)


def option_times(option: Options, choice: Choice) -> dict[str, float]:
    """Milliseconds of a layer before and after, timed alone; empty where it was not timed.

    Args:
        option: of the site.
        choice: one of its options.
    """
    if option.times is None:
        return {}
    place = option.place(choice.taken)
    return {"latency_ms_before": float(option.times[0]), "latency_ms_after": float(option.times[place])}
