"""How many digits PostgreSQL's JSONB writes where JSON has an exponent."""

import math

#: Digits of the longest double.
LONGEST_EXPANSION = 309
#: Up to this exponent JSON and JSONB both write a number out.
_WRITTEN_OUT = 16


def digits_added(number: float) -> int:
    """Return how many digits JSONB writes for a finite double beyond those that JSON has."""
    if number == 0:
        return 0
    exponent = math.floor(math.log10(abs(number)))
    return abs(exponent) if abs(exponent) > _WRITTEN_OUT else 0
