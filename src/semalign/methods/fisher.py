"""The second-order KL, 1/2 sum_J w_j (d_j - dbar)^2, at the output and on target-space logits of the paired layers."""

from semalign.methods.recipe import Recipe

METHODS = (Recipe("fisher", "fisher", layer_loss="fisher", layer_weight=0.1),)
