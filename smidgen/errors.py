"""Every error smidgen raises on purpose.

    SmidgenError
    ├── UserError            something the user gave is wrong; the command line ends with exit code 2
    │   ├── LoadError        a network, its weights or its code cannot be read
    │   │   └── UnsupportedOperator   an ONNX operator the importer does not know
    │   ├── DataError        inputs, labels or preprocessing do not fit
    │   ├── BudgetError      a budget that is malformed or not positive
    │   ├── PlanError        a plan that is damaged or belongs to another network
    │   └── OutputError      a place that cannot be written
    ├── Refusal              a method declines a layer, with its reason; the planner reports it and goes on
    └── VerificationError    a written file does not answer as the network it was written from

Messages name the thing, the value and the mend, in one line: ``data: 'faces/' holds no images; give a folder with …``.
"""

from __future__ import annotations


def one_line(fault: object, most: int = 200) -> str:
    """What a fault of another library says, without line breaks and of bounded length, to stand in a message of ours.

    >>> one_line(ValueError(" bad   shape ")), one_line("abcdef", 3)
    ('bad shape', 'abc')
    """
    return " ".join(str(fault).split())[:most]


class SmidgenError(Exception):
    """Base of all errors raised on purpose."""


class UserError(SmidgenError):
    """Something the user gave is wrong; the message says what, and what to do."""


class LoadError(UserError):
    """A network, its weights or its code cannot be read."""


class UnsupportedOperator(LoadError):
    """An ONNX operator the importer does not know."""


class DataError(UserError):
    """Inputs, labels or preprocessing do not fit."""


class BudgetError(UserError):
    """A budget that is malformed or not positive."""


class PlanError(UserError):
    """A plan that is damaged or belongs to another network."""


class OutputError(UserError):
    """A place that cannot be written."""


class Refusal(SmidgenError):
    """A method declines a layer; the reason is the message."""


class VerificationError(SmidgenError):
    """A written file does not answer as the network it was written from."""
