"""A recipe's objective as text, for cards and pages."""

from __future__ import annotations

from semalign.methods.recipe import Recipe

OUTPUT = {
    "topk_kl": "KL(p_T || p_S) over both models' top-k tokens and the rest as one token",
    "fisher": "1/2 sum_j w_j (d_j - mean_w d)^2 over both models' top-k tokens and the rest, w = (p_T + p_S0) / 2, d = z_S - log p_T",
    "cosine": "1 - cos(logits, onehot(label))",
    "cross_entropy": "-log p_S(label)",
    "kl": "KL(p_T || p_S) over the whole vocabulary",
    "jsd": "JSD(p_T, p_S) over the whole vocabulary",
}
LAYER = {
    "cosine": "1 - cos(h_S, target)",
    "fisher": "the same quadratic form on the logits of h_S and target",
    "geometry": "1 - <K(h_S), K(target)>, K the double-centred Gram matrix over a sequence's tokens",
    "projected_mse": "mean (P h_S - h_T)^2, P learned and thrown away",
}
MAPS = {
    "semantic": "S_S S_T' h_T / |h_T|, S the normalised columns of the heads' pseudo-inverses",
    "logit": "pinv(head_S) head_T h_T",
    "ridge": "M h_T + b, fitted by ridge regression on the untouched pair",
    "weighted_ridge": "M h_T + b, fitted by weighted ridge regression on the untouched pair",
    "procrustes": "R h_T, R the best rotation on the untouched pair",
    "none": "h_T",
}


def formula(recipe: Recipe) -> list[str]:
    """The loss and what stands in it, a line each; terms that the recipe does not use are left out."""
    terms, where = [], []
    if recipe.output_loss != "none":
        terms.append(f"{_factor(recipe.output_weight)}output")
        where.append(f"output = {OUTPUT.get(recipe.output_loss, recipe.output_loss)}{_options(recipe)}")
    if recipe.needs_targets and recipe.layer_weight:
        decay = " (falling to 0)" if recipe.layer_schedule == "decay" else ""
        terms.append(f"{_factor(recipe.layer_weight)}mean over pairs of layer{decay}")
        where.append(
            f"layer = {LAYER.get(recipe.layer_loss, recipe.layer_loss)}, at interface {recipe.interface}"
        )
        where.append(f"target = {MAPS.get(recipe.map, recipe.map)}")
    return [f"loss = {' + '.join(terms)}", *where]


def _factor(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} * "


def _options(recipe: Recipe) -> str:
    options = []
    if recipe.temperature != 1 and recipe.output_loss in ("topk_kl", "kl", "jsd"):
        options.append(f"temperature {recipe.temperature:g}")
    if recipe.label_weight:
        options.append(f"{recipe.label_weight:g} of p_T replaced by the label")
    if recipe.label_smoothing:
        options.append(f"label smoothing {recipe.label_smoothing:g}")
    return f" ({', '.join(options)})" if options else ""
