"""The method's formulas, written out literally and slowly in float64, to compare the package with.

Nothing here calls the package. Layers are counted 1..L.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies in float64 that ask for a gradient where the originals do."""
    return tuple(tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors)


def unit_bases(weight: Tensor) -> Tensor:
    """Column i of pinv(head), normalised to length 1."""
    bases = torch.linalg.pinv(weight.double())
    for column in range(bases.shape[1]):
        length = bases[:, column].norm()
        if length > 0:
            bases[:, column] /= length
    return bases


def aligned_target(hidden: Tensor, teacher_weight: Tensor, student_weight: Tensor) -> Tensor:
    """a = S_T' h / |h|, target = S_S a, one token at a time."""
    teacher_bases, student_bases = unit_bases(teacher_weight), unit_bases(student_weight)
    targets = []
    for state in hidden.double():
        coefficients = teacher_bases.T @ (state / state.norm())
        targets.append(student_bases @ coefficients)
    return torch.stack(targets)


def teacher_layer(k: int, teacher_layers: int, student_layers: int) -> int:
    return max(1, math.floor(Fraction(teacher_layers, student_layers) * k))


def student_layer_for(layer: int, teacher_layers: int, student_layers: int) -> int:
    reaching = [
        k for k in range(1, student_layers + 1) if teacher_layer(k, teacher_layers, student_layers) >= layer
    ]
    return min(reaching) if reaching else student_layers


def interpolated_layers(k: int, teacher_layers: int, student_layers: int) -> dict[int, Fraction]:
    """Weight of each teacher layer in the target for student layer k (zero weights left out)."""
    u = Fraction(teacher_layers * k, student_layers)
    a = max(1, min(math.floor(u), teacher_layers - 1))
    share = min(max(u - a, Fraction(0)), Fraction(1))
    weights = {a: 1 - share, a + 1: share}
    return {layer: weight for layer, weight in weights.items() if weight}


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum() / (x.norm() * y.norm())


def cosine_loss(hidden: Tensor, target: Tensor) -> Tensor:
    return 1 - torch.stack([cosine(h, t) for h, t in zip(hidden, target, strict=True)]).mean()


def output_cosine_loss(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """1 - mean cos(logits, (smoothed) one-hot label), all logits formed."""
    vocabulary = len(weight)
    cosines = []
    for state, label in zip(hidden, labels, strict=True):
        wanted = torch.full((vocabulary,), smoothing / vocabulary, dtype=hidden.dtype)
        wanted[label] += 1 - smoothing
        cosines.append(cosine(weight @ state, wanted))
    return 1 - torch.stack(cosines).mean()


def geometry_loss(student: Tensor, target: Tensor) -> Tensor:
    tokens = len(student)
    centring = torch.eye(tokens, dtype=student.dtype) - torch.full(
        (tokens, tokens), 1 / tokens, dtype=student.dtype
    )
    relations = []
    for states in (student, target):
        centred = centring @ (states @ states.T) @ centring
        relations.append(centred / centred.norm())
    return 1 - (relations[0] * relations[1]).sum()


def logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    scores = hidden @ weight.T
    if bias is not None:
        scores = scores + bias
    scores = scores * scale
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """sum p log(p / q), zero where p is zero."""
    kept = p > 0
    return (p[kept] * (p[kept] / q[kept]).log()).sum()


def divergence(student: Tensor, teacher: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """Mean over positions of a divergence between the softmaxes of two sets of logits, times t^2."""
    values = []
    for z_s, z_t in zip(student, teacher, strict=True):
        p_s, p_t = (z_s / temperature).softmax(0), (z_t / temperature).softmax(0)
        middle = (p_s + p_t) / 2
        values.append(
            {
                "forward": lambda p_s=p_s, p_t=p_t, m=middle: kl(p_t, p_s),
                "reverse": lambda p_s=p_s, p_t=p_t, m=middle: kl(p_s, p_t),
                "jsd": lambda p_s=p_s, p_t=p_t, m=middle: (kl(p_t, m) + kl(p_s, m)) / 2,
            }[kind]()
        )
    return torch.stack(values).mean() * temperature**2


def topk_union(teacher_logits: Tensor, student_logits: Tensor, k: int) -> list[set[int]]:
    """J per position: the set of both models' k most probable tokens."""
    unions = []
    for z_t, z_s in zip(teacher_logits, student_logits, strict=True):
        best = [sorted(range(len(z)), key=lambda token, z=z: -float(z[token]))[:k] for z in (z_t, z_s)]
        unions.append(set(best[0]) | set(best[1]))
    return unions


@dataclass(frozen=True)
class TopkTargets:
    """What is known of a position's J: ids, log-probabilities of both models, and which slots count."""

    ids_NJ: Tensor
    teacher_logp_NJ: Tensor
    student_logp_NJ: Tensor
    mask_NJ: Tensor


def topk_targets(teacher_logits: Tensor, student_logits: Tensor, k: int) -> TopkTargets:
    """The teacher's k most probable tokens, then the student's, of which those that the teacher named do not count."""
    ids, mask = [], []
    for z_t, z_s in zip(teacher_logits, student_logits, strict=True):
        theirs, ours = (
            sorted(range(len(z)), key=lambda token, z=z: -float(z[token]))[:k] for z in (z_t, z_s)
        )
        ids.append([*theirs, *ours])
        mask.append([True] * k + [token not in theirs for token in ours])
    slots = torch.tensor(ids)
    logps = [
        torch.stack([z.double().log_softmax(0)[row] for z, row in zip(logits, slots, strict=True)]).to(
            logits.dtype
        )
        for logits in (teacher_logits, student_logits)
    ]
    return TopkTargets(slots, *logps, torch.tensor(mask))


def topk_kl_loss(
    student_logits: Tensor, teacher_logits: Tensor, unions: list[set[int]], temperature: float = 1.0
) -> Tensor:
    """KL(p_T || p_S), both renormalised over J."""
    values = []
    for z_s, z_t, union in zip(student_logits, teacher_logits, unions, strict=True):
        tokens = sorted(union)
        values.append(kl((z_t[tokens] / temperature).softmax(0), (z_s[tokens] / temperature).softmax(0)))
    return torch.stack(values).mean() * temperature**2


def fisher_loss(
    student_logits: Tensor, teacher_logits: Tensor, untouched_logits: Tensor, unions: list[set[int]]
) -> Tensor:
    """1/2 sum_J w (d - weighted mean d)^2, w = (p_T + p_S0) / 2, d = z_S - log p_T."""
    values = []
    for z_s, z_t, z_0, union in zip(student_logits, teacher_logits, untouched_logits, unions, strict=True):
        p_t, p_0 = z_t.softmax(0), z_0.softmax(0)
        weights = {j: (p_t[j] + p_0[j]) / 2 for j in union}
        differences = {j: z_s[j] - p_t[j].log() for j in union}
        mean = sum(weights[j] * differences[j] for j in union) / sum(weights.values())
        values.append(sum(weights[j] * (differences[j] - mean) ** 2 for j in union) / 2)
    return torch.stack(values).mean()


def cross_entropy_loss(student_logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    values = []
    for z, label in zip(student_logits, labels, strict=True):
        logp = z.log_softmax(0)
        values.append(-(1 - smoothing) * logp[label] - smoothing / len(z) * logp.sum())
    return torch.stack(values).mean()


def decompose(hidden_ND: Tensor, bases_DV: Tensor) -> Tensor:
    """Coefficients a = S' h / |h| (N x V) of states on unit bases."""
    lengths_N1 = hidden_ND.norm(dim=1, keepdim=True).clamp_min(torch.finfo(hidden_ND.dtype).tiny)
    return (hidden_ND / lengths_N1) @ bases_DV


def recompose(coefficients_NV: Tensor, bases_EV: Tensor) -> Tensor:
    """Coefficients put on a set of bases: S a (N x E)."""
    return coefficients_NV @ bases_EV.T
