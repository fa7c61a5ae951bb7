"""Controls with a teacher at the output alone, over the whole vocabulary (Hinton et al. 2015; Agarwal et al. 2024).

kl is KL(p_T || p_S), jsd the Jensen-Shannon divergence; kl_all trains every layer.
"""

from semalign.methods.recipe import Recipe

METHODS = (
    Recipe("kl", "kl"),
    Recipe("kl_all", "kl", trained="all"),
    Recipe("jsd", "jsd"),
)
