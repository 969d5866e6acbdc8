"""Channels of a network: which belong together, and the network without some of them.

Every tensor of the graph carries a label for each element of one of its axes. An operator says how labels pass through
it; a sum of two branches makes their labels the same, a concatenation lines them up, flattening repeats them, padding
makes new ones. What is the same label is one channel, and cut together in every weight, bias, scale, pad, slice and
shape that holds it. The channels of inputs and outputs stay, and so does what reaches an operator without a rule here.
"""

from smidgen.model.channels.cutting import Found, cut, find_channels

__all__ = ["Found", "cut", "find_channels"]
