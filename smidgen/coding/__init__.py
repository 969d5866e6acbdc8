"""Integers ↔ bytes, lossless: bit packing, Huffman, the adaptive arithmetic coder. Numpy only, alike on every machine.

streams.py     int32 tensors: every coder tried, the smallest stream kept        pack, unpack
floats.py      scales and biases, to the bit                                     pack_floats, unpack_floats
blobs.py       any bytes: the network's graph                                    pack_bytes, unpack_bytes
rates.py       what a weight will cost, for rate-aware rounding                  cost_model
kernel.py      one door to the adaptive coder: _kernel.c where compiled, else its plain twin:
               arithmetic.py and _mixture.h the coder, contexts.py and _weights.h the model of weights,
               bytemodel.py and _bytes.h that of bytes, tables.py their numbers
bitpack.py, huffman.py, runs.py, varint.py                                       the plain codes
"""

from smidgen.coding.blobs import pack_bytes, unpack_bytes
from smidgen.coding.floats import pack_floats, unpack_floats
from smidgen.coding.kernel import is_compiled
from smidgen.coding.rates import CostModel, cost_model
from smidgen.coding.streams import CODERS, method_of, pack, pack_many, unpack, unpack_many

__all__ = [
    "CODERS",
    "CostModel",
    "cost_model",
    "is_compiled",
    "method_of",
    "pack",
    "pack_bytes",
    "pack_floats",
    "pack_many",
    "unpack",
    "unpack_bytes",
    "unpack_floats",
    "unpack_many",
]
