"""Controls without a teacher: fine-tuning on the rows' own answers, -log p(label).

The same layers in full, LoRA on them, every layer in full, and every layer with LoRA that starts from the weights'
principal components (PiSSA, arXiv 2404.02948).
"""

from semalign.methods.recipe import Recipe

METHODS = (
    Recipe("cross_entropy", "cross_entropy"),
    Recipe("cross_entropy_lora", "cross_entropy", lora_r=16),
    Recipe("cross_entropy_all", "cross_entropy", trained="all"),
    Recipe("pissa", "cross_entropy", trained="all", lora_r=16, start="pissa"),
)
