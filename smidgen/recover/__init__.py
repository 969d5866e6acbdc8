"""Training: the loop, distillation, and forms that train within what their file can hold.

For a training loop of your own: `parametrize` and `plain` here, `smidgen.recover.schedule.Pruner`, and
`smidgen.recover.norms.reestimate`.
"""

from smidgen.recover.constraints import parametrize, plain

__all__ = ["parametrize", "plain"]
