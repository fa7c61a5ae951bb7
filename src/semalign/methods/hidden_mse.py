"""Hidden-state distillation as commonly done (FitNets, TinyBERT): a learned projector per pair, thrown away afterwards.

loss = cross-entropy + mean over pairs of |W_k h_S - h_T|^2 / |h_T - mean h_T|^2, W_k trained beside the student.
"""

from semalign.methods.recipe import Recipe

METHODS = (Recipe("hidden_mse", "cross_entropy", layer_loss="projected_mse", map="none", layer_weight=1.0),)
