"""How to train MobileNetV2 after it was made 20 times smaller: judged by photos that the original never saw.

Of photos that a network learned from it is surer than of any others, and a smaller one that keeps to it there may
differ elsewhere. So the choice for `transfer.py` is made beside it: the same network of two classes from 1,500 of the
training photos, made smaller and trained in each way here, and judged on the other 500. No test photo is touched.

    python benchmarks/transfer_choice.py                    # half an hour on one core
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from claims import RESULTS, Claim, earlier, joined, save, show
from transfer import AUGMENT, TRAINED, photos, smaller, two_classes

NAME, TITLE = "transfer_choice", "MobileNetV2 20 times smaller, trained: judged on photos that the original never saw"
TIMES, LEARNED, ORDER = 20, 1500, 5  # photos that are learned from, and the seed of the order that says which
CHOICES: dict[str, dict[str, Any]] = {
    "untrained": {},
    "photos mixed": TRAINED,
    "photos not mixed": {**TRAINED, "augment": AUGMENT},
}


def claim_of(name: str, row: dict[str, Any]) -> Claim:
    """One training."""
    text = (
        f"{100 * row['original_accuracy']:.2f} → {100 * row['accuracy']:.2f} %, {100 * row['agreement']:.1f} % "
        f"answered alike, KL {row['kl']:.4f}; {row['nbytes'] / 1e3:.1f} kB"
    )
    return Claim(f"cats and dogs, {TIMES}×, {name}", "", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train = photos("train")
    order = np.random.default_rng(ORDER).permutation(len(train))
    learned, judges = train.take(np.sort(order[:LEARNED])), train.take(np.sort(order[LEARNED:]))
    file, _ = two_classes(learned, judges, args.threads, args.seed, RESULTS / NAME)
    for name in args.choices:
        trained, way = CHOICES[name], "trained" if CHOICES[name] else "calibrated"
        for left in file.parent.glob(f"{way}.*.checkpoint*"):  # of another training
            left.unlink()
        row = smaller(way, file, TIMES, learned, judges, args.threads, args.seed, trained)
        before = earlier(NAME)
        claims = joined(before, [claim_of(name, row)])
        save(NAME, TITLE, claims, rows={**before.get("rows", {}), name: row}, threads=args.threads)
        print(claims[-1].what, claims[-1].measured, flush=True)
    show(TITLE, joined(earlier(NAME), []))


if __name__ == "__main__":
    main()
