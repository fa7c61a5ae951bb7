"""A control: `aligned` with the untouched student's own states as targets of its layers.

Nothing of the teacher is in such a target. What the layer term still gains with it is what holding a student near its old states
gains, and is no transfer.
"""

from dataclasses import replace

from semalign.methods.aligned import METHODS as ALIGNED

METHODS = (replace(ALIGNED[0], name="self", map="self"),)
