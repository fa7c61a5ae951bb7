"""The recipe of the paper's ACL Findings 2026 version, known from its abstract alone.

One teacher layer per student layer; from shallow to deep only the frontier layer is trainable; its loss is the
Fisher-weighted quadratic on target-space aligned logits; the output keeps a KL to the teacher. The abstract means every student
layer, and the plan says which there are: `pairing.selection: all` trains them all, while the default plan has a quarter of them.
"""

from semalign.methods.recipe import Recipe

METHODS = (Recipe("acl", output_loss="topk_kl", layer_loss="fisher", layer_weight=1.0, schedule="frontier"),)
