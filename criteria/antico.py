import torch
from torch.nn.functional import normalize

from criteria.base import Criterion, ProxyCriterion, need, need_choice
from criteria.pml import ModuleLoss
from criteria.rate import LARGE, coding_rate, max_coding_rate
from parameters import defaults_of

OF_EMBEDDINGS, OF_PROXIES = ("pair", "class_means"), ("batch_proxy", "all_proxy")
DEAD = 1e-6  # below this, exp(-gam2 R) adds nothing that float32 Adam steps of the base loss would notice


class NoBase(Criterion):
    """No base, the coding-rate term alone: always 0."""

    def loss(self, embeddings, labels):
        return 0 * embeddings.sum()


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
        MCR²; `normalized`: 1 - R/R_max, in [0, 1], with a gradient whatever n and d
    scale : `published`: s = d / (n eps) for `pair` and `class_means`, n / (d eps) for the proxies; `mcr2`: d / (n eps²)
    base : Criterion or any module (embeddings, labels) → scalar, the label-driven loss underneath; ValueError if a
        proxy variant finds no vector a class in it: `.proxies` (C, d), or `.W` (d, C) as in pytorch-metric-learning
    w, eps : by default those of `--loss antico_<variant>` over this base (DEFAULTS in parameters.py)
    raw_embeddings : True takes the embeddings of `pair` as they come, as published, instead of L2-normalising them

    `.logs` has the base's logs, `base`, `term`, `coding_rate` (R, nats) and `coding_rate_share` (R / R_max).
    """

    def __init__(self, base, variant="batch_proxy", form="normalized", align=1.0, w=None, gam1=1.0, gam2=1.0, eps=None,
                 scale="published", raw_embeddings=False):  # fmt: skip
        super().__init__()
        base = base if isinstance(base, Criterion) else ModuleLoss(base)
        need_choice(self, *OF_EMBEDDINGS, *OF_PROXIES, variant=variant)
        need_choice(self, "exp", "neg", "normalized", form=form)
        need_choice(self, "published", "mcr2", scale=scale)
        own = defaults_of(f"antico_{variant}", base.name)
        self.w, self.eps = own["antico_w"] if w is None else w, own["antico_eps"] if eps is None else eps
        need(self, eps=self.eps, gam1=gam1, gam2=gam2)
        if variant in OF_PROXIES and not hasattr(base, "proxies"):
            wanted = f"a base with proxies, one a class, such as ProxyAnchor, got {base._get_name()}"
            raise ValueError(f"AntiCo: variant {variant} needs {wanted}; pair and class_means go with every base")
        self.base, self.variant, self.form, self.scale, self.align = base, variant, form, scale, align
        self.gam1, self.gam2, self.raw_embeddings = gam1, gam2, raw_embeddings and variant == "pair"
        self.n_classes, self.embed_dim, self.mined = base.n_classes, base.embed_dim, base.mined
        self.compiles = base.compiles

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
        terms = {"exp": torch.exp(-self.gam2 * rate), "neg": -self.gam2 * rate, "normalized": 1 - rate / largest}
        term = terms[self.form]
        # the base's own names come first: one of them may be among these, as nir's `base`
        self.log(**{**self.base.terms, "base": base, "term": term}, coding_rate=rate, coding_rate_share=rate / largest)
        return self.align * base + self.w * term

    def note(self, rows):
        """The first epoch in which the published form has no gradient left."""
        dead = [row for row in rows if row.get("loss/term", 1) < DEAD]
        if self.form != "exp" or dead != rows[-1:]:
            return ""
        values = f"R = {dead[0]['loss/coding_rate']:.1f} nats, exp(-R) = {dead[0]['loss/term']:.1e} ({self.variant})"
        return f"note: the published form exp(-R) has no gradient left: {values}. --antico_form normalized keeps one."
