"""One answer of a classifier."""
from typing import NamedTuple

__all__ = ['Prediction']


class Prediction(NamedTuple):
    """One class that an image may show."""
    label: str
    score: float    # softmax probability, 0..1
    index: int      # of the class
