"""Which elements of a network's tensors are one and the same channel: a union of labels."""

from __future__ import annotations

import numpy as np


class Labels:
    """Labels that can be joined, and pinned for a reason; what is joined with a pinned one is pinned too.

    >>> labels = Labels()
    >>> a, b = labels.fresh(3), labels.fresh(3)
    >>> labels.join(a, b)
    >>> labels.pin(b[:1], "it is an output")
    >>> labels.reason(a).tolist()
    ['it is an output', None, None]
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> np.ndarray:
        """So many labels, joined with none."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def fixed(self, reason: str) -> np.ndarray:
        """One pinned label."""
        label = self.fresh(1)
        self.pin(label, reason)
        return label

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Make each label of one array the same as its counterpart of the other, which is broadcast."""
        pairs = np.stack([each.ravel() for each in np.broadcast_arrays(left, right)], axis=1)
        for one, other in np.unique(pairs, axis=0).tolist():
            a, b = sorted((self._root(one), self._root(other)))
            if a != b:
                self._parent[b] = a
                if b in self._reasons:
                    self._reasons.setdefault(a, self._reasons[b])

    def pin(self, labels: np.ndarray, reason: str) -> None:
        """Labels that stay; the first reason is kept."""
        for root in np.unique(self.roots(labels)).tolist():
            self._reasons.setdefault(root, reason)

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """One label that stands for all that are the same."""
        values, inverse = np.unique(labels, return_inverse=True)
        return np.array([self._root(v) for v in values.tolist()], dtype=np.int64)[inverse].reshape(labels.shape)

    def reason(self, labels: np.ndarray) -> np.ndarray:
        """Why each label stays, None where it need not."""
        return np.array([self._reasons.get(r) for r in self.roots(labels).ravel().tolist()], dtype=object)

    def _root(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label
