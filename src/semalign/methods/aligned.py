"""SemAlign's default: the teacher's distribution at the output, aligned targets at the paired layers.

loss = KL(p_T || p_S) on the union of both models' top-k tokens and the rest as one token, plus 0.1 times the mean over
pairs of 1 - cos(h_S, M h_T + b), with M and b fitted by ridge regression on the untouched pair.
"""

from semalign.methods.recipe import Recipe

METHODS = (
    Recipe("aligned", "topk_kl", layer_loss="cosine", layer_weight=0.1),
    Recipe("aligned_output", "topk_kl"),
)
