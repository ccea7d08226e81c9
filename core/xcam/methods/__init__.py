"""Methods: class activation maps. Importing the package registers all of them."""

from xcam.methods import (  # isort: skip  # the order of registration is the order of the documentation
    gradient as gradient,
    principal as principal,
    feature as feature,
    masking as masking,
    ablation as ablation,
    baseline as baseline,
)
