import torch
from torch import nn
from torch.nn.functional import normalize

from criteria.base import Criterion, ProxyCriterion, need, need_choice
from criteria.pml import ModuleLoss
from criteria.rate import LARGE, coding_rate, max_coding_rate

OF_EMBEDDINGS, OF_PROXIES = ("pair", "class_means"), ("batch_proxy", "all_proxy")
FORMS = ("exp", "neg", "normalized", "guard")
FINE = 0.005  # precision of the guard of `pair`: a coarser one sees the loss of small directions too late
RECENT = 0.98  # of the guard's running means
DEAD = 1e-6  # below this, exp(-gam2 R) adds nothing that float32 Adam steps of the base loss would notice


class NoBase(Criterion):
    """No base, the coding-rate term alone: always 0."""

    def loss(self, embeddings, labels):
        return 0 * embeddings.sum()


class Guard(nn.Module):
    """The weight at which 1 - R/R_max pushes as hard as the base loss pulls, while the space is too small (ours).

    w = g · clamp((target - R/R_max) / 0.1, 0, 1), without a gradient of its own; g is |∇ align · base| over
    |∇ (1 - R/R_max)|, both running means (0.98, begun at 0) of the norms at the embeddings (B, d), or at the proxies
    of the proxy variants. Weights by gradient: Chen et al., GradNorm, ICML 2018; Esser et al., VQ-GAN, CVPR 2021,
    eq. 7. It costs a second backward pass of the loss, not of the network. The buffers are float64, in checkpoints too.

    The target by default, from the study (tables/README.md): over a base with proxies, for `pair` the R/R_max of the
    first batch, at least 0.5, while the other variants always act. Any other base, such as a pair loss, holds its batch
    apart by itself: there half of the first batch's, so that the guard acts on a collapse alone. Where there is no
    base, or align is 0, the weight is 1.
    """

    def __init__(self, base, variant, target=None, align=1.0):
        super().__init__()
        self.alone = isinstance(base, NoBase) or align == 0
        self.least, self.kept = (0.5, 1.0) if variant == "pair" else (torch.inf, 1.0)
        if target is not None or not hasattr(base, "proxies"):
            self.least, self.kept = (0.0, 0.5) if target is None else (target, 0.0)
        self.register_buffer("pulls", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("before", torch.tensor(-1.0, dtype=torch.float64))  # not known yet

    def forward(self, base, term, share, at):
        """The weight of `term` beside `base`, scalars with a graph; share: R/R_max; at: the rows that both move."""
        if self.alone:
            return torch.ones_like(term)
        share = share.detach()
        if self.training and at.requires_grad and torch.is_grad_enabled():
            both = [torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)[0] for loss in (base, term)]
            norms = torch.stack([at.new_zeros(()) if x is None else x.norm() for x in both]).double()
            finite = norms.isfinite().all()  # others are not counted
            self.pulls = torch.where(finite, RECENT * self.pulls + (1 - RECENT) * norms, self.pulls)
            self.before = torch.where((self.before < 0) & finite, share.double(), self.before)
        target = (self.kept * self.before).clamp(min=self.least)
        g = torch.where(self.pulls[1] > 0, self.pulls[0] / self.pulls[1], 0)
        return (g * ((target - share) / 0.1).clamp(0, 1)).to(term.dtype)


def parameter_of(vectors):
    """What they are a view of, as pytorch-metric-learning's W turned round is, or they themselves."""
    return vectors if vectors._base is None else vectors._base


class AntiCo(Criterion):
    """Anti-Collapse loss over a base loss (Jiang et al., TMM 2024, arXiv 2407.03106; MCR²: Yu et al., NeurIPS 2020).

    align · base + w · term(R), R = 1/2 logdet(I + gam1 s ZᵀZ) (nats) of the L2-normalised rows Z, which are

    - `pair`: the batch's embeddings, n = B;
    - `batch_proxy`: the proxies of the n classes in the batch;
    - `all_proxy`: all n = C proxies;
    - `class_means` (ours, not the paper's): the means of the L2-normalised embeddings of the n classes in the batch,
      not normalised: a mean is the longer, up to 1, the tighter its class. So R rises when classes part and when they
      draw together; R_max is reached by classes that are points, spread evenly.

    form : `exp`: exp(-gam2 R), published, which underflows beyond R of about 15; `neg`: -gam2 R, the expansion term of
        MCR²; `normalized`: 1 - R/R_max, in [0, 1], with a gradient whatever n and d; `guard` (ours): the same, with a
        weight that follows the base loss, see Guard. By default `guard`, or `normalized` where w is given
    eps : precision, by default 0.5; in the guard of `pair`, at the published scale, 0.005
    w : weight of the term, in `guard` a factor of the weight that it finds
    target : share of R_max below which the guard acts; None: its own rule
    scale : `published`: s = d / (n eps) for `pair` and `class_means`, n / (d eps) for the proxies; `mcr2`: d / (n eps²)
    base : Criterion or any module (embeddings, labels) → scalar, the label-driven loss underneath; ValueError if a
        proxy variant finds no vector a class in it: `.proxies` (C, d), or `.W` (d, C) as in pytorch-metric-learning
    raw_embeddings : True takes the embeddings of `pair` as they come, as published, instead of L2-normalising them

    `.logs` has the base's logs, `base`, `term`, `coding_rate` (R, nats) and `coding_rate_share` (R / R_max), of a guard
    its `weight`, too.
    """

    def __init__(self, base, variant="batch_proxy", form=None, align=1.0, w=None, gam1=1.0, gam2=1.0, eps=None,
                 scale="published", target=None, raw_embeddings=False):  # fmt: skip
        super().__init__()
        base = base if isinstance(base, Criterion) else ModuleLoss(base)
        need_choice(self, *OF_EMBEDDINGS, *OF_PROXIES, variant=variant)
        form = form or ("guard" if w is None else "normalized")
        need_choice(self, *FORMS, form=form)
        need_choice(self, "published", "mcr2", scale=scale)
        if eps is None:
            eps = FINE if (variant, form, scale) == ("pair", "guard", "published") else 0.5
        need(self, eps=eps, gam1=gam1, gam2=gam2)
        if variant in OF_PROXIES and not hasattr(base, "proxies"):
            wanted = f"a base with proxies, one a class, such as ProxyAnchor, got {base._get_name()}"
            raise ValueError(f"AntiCo: variant {variant} needs {wanted}; pair and class_means go with every base")
        if variant in OF_PROXIES and form == "guard" and not parameter_of(base.proxies).is_leaf:
            raise ValueError(
                "AntiCo: the guard needs proxies that are a parameter or a view of one, not computed from it"
            )
        self.base, self.variant, self.form, self.scale, self.align = base, variant, form, scale, align
        self.w, self.eps, self.gam1, self.gam2 = 1.0 if w is None else w, eps, gam1, gam2
        self.raw_embeddings = raw_embeddings and variant == "pair"
        self.guard = Guard(base, variant, target, align) if form == "guard" else None
        self.n_classes, self.embed_dim, self.mined = base.n_classes, base.embed_dim, base.mined
        self.compiles = base.compiles and (not self.guard or self.guard.alone)

    @property
    def proxies(self):
        """The base loss's proxies (C, d), where it has such."""
        return self.base.proxies

    def param_groups(self, lr):
        return self.base.param_groups(lr)

    def scale_of(self, n, d):
        """gam1 · s for n rows in d dimensions."""
        if self.scale == "mcr2":
            return self.gam1 * d / (n * self.eps**2)
        return self.gam1 * d / (n * self.eps) if self.variant in OF_EMBEDDINGS else self.gam1 * n / (d * self.eps)

    def rows(self, embeddings, proxies, labels):
        """(Z, n): rows L2-normalised, and how many count. Rows beyond the n are zero, and add nothing to the rate."""
        if self.variant == "all_proxy":
            return proxies, len(proxies)
        Z = embeddings if self.raw_embeddings else normalize(embeddings, dim=1)
        if self.variant == "pair":
            return Z, len(Z)
        # each class once: later samples of it get a zero row, so that shapes depend on B alone and nothing waits
        labels = labels.to(Z.device, non_blocking=True)
        same = labels[:, None] == labels[None, :]
        again = same.tril(-1).any(1)
        Z = proxies[labels] if self.variant == "batch_proxy" else same.to(Z.dtype) @ Z / same.sum(1, keepdim=True)
        return Z.masked_fill(again[:, None], 0), (~again).sum().to(Z.dtype)

    def rate(self, embeddings, proxies, labels):
        """R of this batch and its maximum, in nats: two scalars."""
        Z, n = self.rows(embeddings, proxies, labels)
        d, most = Z.shape[1], min(len(Z), len(self.proxies)) if self.variant in OF_PROXIES else len(Z)
        s = self.scale_of(n, d)
        # float64 where float32 would lose the identity, by the trace of unit rows: reading the real one waits
        wide = self.raw_embeddings or most * self.scale_of(most, d) > LARGE
        dtype = torch.float64 if wide else Z.dtype
        return coding_rate(Z, s, dtype).to(Z.dtype), max_coding_rate(n, d, s)

    def loss(self, embeddings, labels):
        shared = isinstance(self.base, ProxyCriterion)  # the proxies are normalised once for both
        proxies = normalize(self.proxies.to(embeddings.dtype), dim=1) if shared or self.variant in OF_PROXIES else None
        if shared:
            base = self.base.proxy_loss(normalize(embeddings, dim=1), proxies, labels)
        else:
            base = self.base(embeddings, labels)
        rate, largest = self.rate(embeddings, proxies, labels)
        share = rate / largest
        forms = dict(exp=torch.exp(-self.gam2 * rate), neg=-self.gam2 * rate, normalized=1 - share, guard=1 - share)
        term, weight, logs = forms[self.form], self.w, {}
        if self.guard:
            at = embeddings if self.variant in OF_EMBEDDINGS else parameter_of(self.proxies)
            weight = logs["weight"] = self.w * self.guard(self.align * base, term, share, at)
        # the base's own names come first: one of them may be among these, as nir's `base`
        logs |= {"base": base, "term": term, "coding_rate": rate, "coding_rate_share": share}
        self.log(**{**self.base.terms, **logs})
        return self.align * base + weight * term

    def note(self, rows):
        """The first epoch in which the published form has no gradient left, or whether the guard acted in the first."""
        if self.guard and len(rows) == 2 and rows[-1].get("loss/weight") == 0 != self.w:
            share = f"R/R_max was {rows[-1]['loss/coding_rate_share']:.2f} in the mean"
            return f"note: the guard did not act: {share}; --antico_target sets a bound, --antico_w a fixed weight"
        dead = [row for row in rows if row.get("loss/term", 1) < DEAD]
        if self.form != "exp" or dead != rows[-1:]:
            return ""
        values = f"R = {dead[0]['loss/coding_rate']:.1f} nats, exp(-R) = {dead[0]['loss/term']:.1e} ({self.variant})"
        return f"note: the published form exp(-R) has no gradient left: {values}. --antico_form normalized keeps one."
