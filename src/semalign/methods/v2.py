"""The recipe of the paper's second arXiv version (May 2026), known from its abstract alone.

The frontier schedule of `acl`; the layer loss is 1 - <K_S, K_T> with K the double-centred Gram matrix over the tokens of
a sequence, of what the layer adds to the stream and of the aligned teacher's addition; output KL to the teacher.
"""

from semalign.methods.recipe import Recipe

METHODS = (
    Recipe("v2", "topk_kl", layer_loss="geometry", interface="delta", layer_weight=1.0, schedule="frontier"),
)
