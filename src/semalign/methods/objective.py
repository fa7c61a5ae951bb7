"""A recipe's losses on one batch of supervised positions.

Only the controls `kl`, `jsd` and `cross_entropy` form logits over the vocabulary, in chunks.

Legend: N supervised positions, E student width, D teacher width, J slots of the top-k union.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from semalign.data import Sample
from semalign.data.batches import labels_of
from semalign.errors import SemAlignError
from semalign.maths.bases import gram
from semalign.maths.full_vocabulary import cross_entropy_loss, full_kl_loss
from semalign.maths.losses import cosine_loss, geometry_loss, output_cosine_loss, projected_mse_loss
from semalign.maths.topk import (
    fisher_loss,
    fisher_quadratic,
    logp_with_rest,
    mix_labels,
    rest_logit,
    topk_kl_loss,
    with_rest,
)
from semalign.methods.recipe import TOPK, Recipe
from semalign.models.decoder import Decoder
from semalign.models.head import Head

FULL_VOCABULARY = ("cross_entropy", "kl", "jsd")


class Objective(nn.Module):
    """loss = output_weight * output loss + layer_weight * mean over pairs of the layer loss.

    Holds parameters of its own only where the recipe learns a projector per pair; they are not part of the student.
    """

    def __init__(
        self,
        recipe: Recipe,
        decoder: Decoder,
        places: Sequence[str],
        candidates_C: Tensor,
        teacher_head: Head | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.decoder, self.head, self.teacher_head = (
            recipe,
            decoder,
            decoder.head(),
            teacher_head,
        )
        self.candidates_C = candidates_C.to(decoder.device)
        self.others = self.head.rows(self.candidates_C) if recipe.output_loss in TOPK else None
        self.gram_EE = self._gram() if recipe.output_loss == "cosine" else None
        self.projectors = nn.ModuleDict()
        if recipe.layer_loss == "projected_mse":
            assert teacher_head is not None
            wide = teacher_head.weight_VD.shape[1]
            self.projectors = nn.ModuleDict({k: nn.Linear(decoder.width, wide) for k in places})
        self.progress = 0.0
        """Share of the training that is done, kept by the trainer for schedules."""

    def _gram(self) -> Tensor:
        options = self.head.options
        if options.softcap is not None or options.bias_V is not None:
            raise SemAlignError(
                "recipe.output_loss: cosine needs a head without bias and without logit soft-cap, which this student has; "
                "use topk_kl or fisher."
            )
        return gram(self.head.weight_VD)

    def forward(
        self,
        output_NE: Tensor,
        hidden: Mapping[str, Tensor],
        labels_N: Tensor,
        counts: Sequence[int],
        batch: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """loss, loss_output and, with pairs, loss_layer.

        Args:
            output_NE: states after the final norm.
            hidden: per paired student layer, or head in it, its activations (N, E).
            counts: supervised positions of each row of the batch, adding up to N.
            batch: the supervision's signals.
        """
        kind = output_NE.device.type
        # Layers may multiply in half precision; the few logits and the Gram matrices here may not. Logits over the whole
        # vocabulary may, as they do in the model itself: their share of the time would be several times as large.
        is_mixed = torch.is_autocast_enabled(kind) and self.recipe.output_loss in FULL_VOCABULARY
        with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=is_mixed):
            losses = {"loss_output": self.output_loss(output_NE.float(), labels_N, batch)}
        total = self.recipe.output_weight * losses["loss_output"]
        if hidden:
            with torch.autocast(kind, enabled=False):
                terms = [self.layer_loss(k, h.float(), counts, batch) for k, h in hidden.items()]
            losses["loss_layer"] = torch.stack(terms).mean()
            share = 1.0 - self.progress if self.recipe.layer_schedule == "decay" else 1.0
            total = total + share * self.recipe.layer_weight * losses["loss_layer"]
        return {"loss": total, **losses}

    def output_loss(self, output_NE: Tensor, labels_N: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The recipe's loss at the output."""
        recipe, head = self.recipe, self.head
        if recipe.output_loss in TOPK:
            return self._topk_loss(output_NE, labels_N, batch)
        if recipe.output_loss == "cosine":
            assert self.gram_EE is not None
            return output_cosine_loss(
                output_NE, head.weight_VD, self.gram_EE, labels_N, label_smoothing=recipe.label_smoothing
            )
        if recipe.output_loss == "cross_entropy":
            return cross_entropy_loss(
                output_NE,
                head.weight_VD,
                labels_N,
                label_smoothing=recipe.label_smoothing,
                options=head.options,
            )
        if recipe.output_loss in ("kl", "jsd"):
            assert self.teacher_head is not None
            return full_kl_loss(
                output_NE,
                head.weight_VD,
                batch["teacher_output"],
                self.teacher_head.weight_VD,
                kind="jsd" if recipe.output_loss == "jsd" else "forward",
                temperature=recipe.temperature,
                student=head.options,
                teacher=self.teacher_head.options,
            )
        return output_NE.sum() * 0.0

    def _topk_loss(self, output_NE: Tensor, labels_N: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        assert self.others is not None
        ids, valid, teacher_logp = batch["ids"].long(), batch["valid"], batch["teacher_logp"]
        if self.recipe.label_weight:
            ids, teacher_logp, valid = mix_labels(
                ids, teacher_logp, valid, labels_N, share=self.recipe.label_weight
            )
        others_NC = self.others.logits(output_NE)
        rest_N1 = rest_logit(others_NC, self.candidates_C, ids, valid, batch["outside"])
        logits, teacher_logp, mask = with_rest(
            self.head.gathered(output_NE, ids), rest_N1, teacher_logp, valid
        )
        if self.recipe.output_loss == "topk_kl":
            return topk_kl_loss(logits, teacher_logp, mask, temperature=self.recipe.temperature)
        untouched = logp_with_rest(batch["student_logp"], valid)
        return fisher_loss(logits, teacher_logp, untouched, mask)

    def layer_loss(
        self, place: str, hidden_NE: Tensor, counts: Sequence[int], batch: Mapping[str, Tensor]
    ) -> Tensor:
        """The recipe's loss at one paired layer or head."""
        target = batch[f"target.{place}"].float()
        kind = self.recipe.layer_loss
        if kind == "cosine":
            return cosine_loss(hidden_NE, target)
        if kind == "projected_mse":
            return projected_mse_loss(self.projectors[place](hidden_NE), target)
        if kind == "geometry":
            rows = zip(hidden_NE.split(list(counts)), target.split(list(counts)), strict=True)
            return torch.stack([geometry_loss(own_TE, target_TE) for own_TE, target_TE in rows]).mean()
        # fisher: both sides through final norm and head, at the cached tokens.
        ids, norm = batch["ids"].long(), self.decoder.final_norm
        with torch.no_grad():
            target_NJ = self.head.gathered(norm(target), ids)
        logits_NJ = self.head.gathered(norm(hidden_NE), ids)
        # The metric is the output's, (p_T + p_S0) / 2; only the difference is the layer's own.
        return fisher_quadratic(
            logits_NJ - target_NJ, batch["teacher_logp"], batch["student_logp"], batch["valid"]
        )


def sum_of_row_means(output_BTD: Tensor, states_BT: Tensor, samples: Sequence[Sample], head: Head) -> Tensor:
    """Each row's own mean negative log-likelihood, added up: no row's gradient depends on its batch."""
    device = output_BTD.device
    labels_N = torch.cat([labels_of(sample) for sample in samples]).to(device)
    counts = torch.tensor([sample.supervised for sample in samples], device=device)
    # One product with the head for the whole batch: a half-precision head is upcast once, not once a row.
    weights_N = (1.0 / counts).repeat_interleave(counts)
    mean = cross_entropy_loss(
        output_BTD[states_BT], head.weight_VD, labels_N, options=head.options, weights_N=weights_N
    )
    return mean * len(labels_N)
