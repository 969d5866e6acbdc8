"""Bounds on what an untrusted file may ask for, each with its reason."""

from __future__ import annotations

OLDEST_OPSET = 7
"""Numpy-style broadcasting came with opset 7; before it, arithmetic carried `axis` and `broadcast` attributes."""

NEWEST_OPSET = 28
"""Newest opset whose operators were held against ONNX's own node tests."""

MAX_NODES = 100_000
"""The largest published vision and language graphs have about 20,000 nodes."""

MAX_ELEMENTS = 1 << 28
"""Elements of one intermediate for one sample: 1 GiB of float32, far over any activation on a phone."""

MAX_FOLDED = 1 << 24
"""Elements of one folded constant: past it the expression stays in the graph, and is computed when it runs."""

MAX_FOLDED_TOTAL = 1 << 27
"""Elements folded in one import, so that a long chain of large constants cannot stall it."""

MAX_FOLD_WORK = 1 << 30
"""Output elements × largest operand of one folded matrix product or convolution."""

MAX_RANK = 12
"""Ranks past 8 do not occur; torch's own limit for permutations and reductions is 64 with poor support past 12."""

MAX_LENGTH = 1 << 16
"""Entries of one shape, pads, starts … vector."""

MAX_SIZES = 1 << 8
"""Entries of an array in shape arithmetic, each of which becomes nodes of its own; ranks stay far below."""

MAX_RESIZED = 1 << 14
"""Length of an axis resized by a matrix made at import; images torch resizes itself may be larger."""

MAX_NAME = 64
"""Characters kept of a module name."""

BATCH_PROBES = (24, 48)
"""Two stand-ins for a dynamic batch. A size is dynamic when it differs between them; both divide by the usual group
counts, and no rounding by a usual factor makes them equal."""

LENGTH_PROBES = ((64, 96), (224, 256), (512, 1024), (16, 32))
"""Stand-ins for other dynamic axes (height, width, sequence length), tried in this order."""
