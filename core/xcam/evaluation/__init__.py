"""Measures of trust. Importing this package registers all of them, in the order of the documentation."""

from xcam.evaluation import (  # isort: skip  # the order of registration is the order of the documentation
    perturbation as perturbation,
    road as road,
    agreement as agreement,
    robustness as robustness,
    localization as localization,
    randomization as randomization,
)
