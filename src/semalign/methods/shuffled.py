"""A control: `aligned` with the signals of other rows. If it does as well, nothing was transferred."""

from dataclasses import replace

from semalign.methods.aligned import METHODS as ALIGNED

METHODS = (replace(ALIGNED[0], name="shuffled", signals="shuffled"),)
