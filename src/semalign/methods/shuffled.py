"""Controls: `aligned` with the signals of other rows, all of them or those of the layers alone. If it does as well, nothing was transferred."""

from dataclasses import replace

from semalign.methods.aligned import METHODS as ALIGNED

METHODS = (
    replace(ALIGNED[0], name="shuffled", signals="shuffled"),
    replace(ALIGNED[0], name="shuffled_targets", signals="shuffled_targets"),
)
