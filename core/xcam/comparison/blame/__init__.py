"""Where the difference of two models comes from: what each stretch of the second contributes to it.

Vocabulary: a location is a pair of corresponding layers through which everything passes; a stretch is what lies between two
locations, and is named after the one at its end; its local error is the error at its end where its start has the first model's value; its contribution is the part
of the difference at the end that disappears when its end, instead of its start, has the first model's value.
"""

from xcam.comparison.blame.data import BlamedImage, Contribution, Interval

__all__ = ["BlamedImage", "Contribution", "Interval"]
