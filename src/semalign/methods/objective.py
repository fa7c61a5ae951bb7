"""A recipe's losses on one batch of supervised positions.

Only losses that say so (`OutputLoss.is_full_vocabulary`) form logits over the vocabulary, in chunks.

Legend: B batch, T tokens, N supervised positions, E student width, D teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from semalign.data.batches import labels_of
from semalign.data.samples import Sample
from semalign.maths.full_vocabulary import cross_entropy_loss
from semalign.methods.loss import Batch, Setting
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder
from semalign.models.head import Head


class Objective(nn.Module):
    """loss = output_weight * output loss + layer_weight * mean over pairs of the layer loss.

    Holds parameters of its own only where the layer loss learns some; they are not part of the student.
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
        self.recipe, self.head = recipe, decoder.head()
        candidates_C = candidates_C.to(decoder.device)
        setting = Setting(
            recipe, decoder, self.head, candidates_C, tuple(places), teacher_head, lambda: self.progress
        )
        output = recipe.output.make(setting) if recipe.output is not None else None
        layer = recipe.layer.make(setting) if recipe.layer is not None else None
        # In a tuple, so that a term with parameters is registered once, under the name that checkpoints have it under.
        self.terms = (output, layer)
        self.projectors = layer if isinstance(layer, nn.Module) else None
        self.progress = 0.0
        """Share of the training that is done, kept by the trainer for schedules."""

    def forward(
        self,
        output_NE: Tensor,
        hidden: Mapping[str, Tensor],
        labels_N: Tensor,
        counts: Sequence[int],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """loss, loss_output and, with pairs, loss_layer.

        Args:
            output_NE: states after the final norm.
            hidden: per paired student layer, or head in it, its activations (N, E).
            counts: supervised positions of each row of the batch, adding up to N.
            batch: the supervision's signals.
        """
        kind, output = output_NE.device.type, self.recipe.output
        # Layers may multiply in half precision; the few logits and the Gram matrices here may not. Logits over the whole
        # vocabulary may, as they do in the model itself: their share of the time would be several times as large.
        is_mixed = torch.is_autocast_enabled(kind) and output is not None and output.is_full_vocabulary
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

    def output_loss(self, output_NE: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        """The recipe's loss at the output; 0 where it has none."""
        term = self.terms[0]
        return output_NE.sum() * 0.0 if term is None else term(output_NE, labels_N, batch)

    def layer_loss(self, place: str, hidden_NE: Tensor, counts: Sequence[int], batch: Batch) -> Tensor:
        """The recipe's loss at one paired layer or head."""
        term = self.terms[1]
        assert term is not None
        return term(place, hidden_NE, batch[f"target.{place}"].float(), counts, batch)


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
