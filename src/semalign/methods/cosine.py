"""The paper's recipe, arXiv 2510.24208 version 1, to the letter: both cosine terms, unweighted.

loss = 1 - mean cos(h_S, S_S S_T' h_T / |h_T|) + 1 - mean cos(logits, onehot), at the output of the MLP.
"""

from semalign.methods.recipe import Recipe

METHODS = (Recipe("cosine", "cosine", "cosine", "semantic", "mlp", layer_weight=1.0, learning_rate=3e-4),)
