"""How fast the coding-rate term drives a collapsed batch apart: python -m benchmarks.collapse

n unit rows lie within a small angle of one direction. Rows that are equal are a saddle of R: its gradient there is
along the rows and does nothing on the sphere. What drives them apart is the gradient across: to first order it is
proportional to the deviations, so they grow like exp(g t) for a step of gradient flow, and the table has g for w = 1,
the growth of the deviations between classes and within them. It is no timing: the same on every machine.
"""

import torch
from torch.nn.functional import normalize

from criteria.coding_rate import coding_rate, max_coding_rate

ANGLES = (0.001, 0.01, 0.1, 0.5)  # of the rows to their mean direction, radians


def share(Z, s):
    return coding_rate(Z, s) / max_coding_rate(*Z.shape, s)


def pair(eps):
    return lambda Z, labels: share(Z, Z.shape[1] / (len(Z) * eps))


def centred(Z, labels):
    return pair(0.5)(Z - Z.mean(0), labels)


def class_means(Z, labels):
    means = torch.stack([Z[labels == c].mean(0) for c in labels.unique()])
    return share(means, Z.shape[1] / (len(means) * 0.5))


def queue(Z, labels):
    """With 1,024 past embeddings, which get no gradient."""
    past = Z.detach().repeat(-(-1024 // len(Z)), 1)[:1024]
    past = normalize(past + past.std() * 0.1 * torch.randn_like(past), dim=1)
    return pair(0.5)(torch.cat([Z, past]), labels)


TERMS = {
    "pair, eps 0.5 (published)": pair(0.5),
    "pair, eps 0.05": pair(0.05),
    "pair, eps 0.005": pair(0.005),
    "centred, eps 0.5": centred,
    "queue of 1,024, eps 0.5": queue,
    "class means, eps 0.5": class_means,
}


def batch(n, d, angle, per_class=4):
    """(Z (n, d) of unit rows about one direction, labels): half of the deviation's energy is between classes."""
    torch.manual_seed(0)
    labels = torch.arange(n) // per_class
    apart = torch.randn(n, d, dtype=torch.float64) + torch.randn(n // per_class, d, dtype=torch.float64)[labels]
    apart[:, 0] = 0
    centre = torch.eye(d, dtype=torch.float64)[0]
    return normalize(centre + apart / apart.norm(dim=1).mean() * angle, dim=1).requires_grad_(), labels


def growth(term, Z, labels):
    """(between, within): how fast the deviations grow, per unit of time of gradient flow on the sphere and of w."""
    (gradient,) = torch.autograd.grad(term(normalize(Z, dim=1), labels), Z)
    Z = Z.detach()

    def parts(rows):
        means = torch.stack([rows[labels == c].mean(0) for c in labels.unique()])[labels]
        return means - rows.mean(0), rows - means

    return [float((part * move).sum() / part.square().sum()) for part, move in zip(parts(Z), parts(gradient))]


def table(n, d):
    print(f"\nn = {n} embeddings of {n // 4} classes in {d} dimensions: growth between classes / within, w = 1\n")
    print(f"| term | {' | '.join(f'angle {angle:g}' for angle in ANGLES)} |\n|---|{'--:|' * len(ANGLES)}")
    for name, term in TERMS.items():
        cells = ["{:.4f} / {:.4f}".format(*growth(term, *batch(n, d, angle))) for angle in ANGLES]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    table(96, 64)
    table(92, 512)
