"""The Anti-Collapse loss: a base loss plus a term that keeps the coding rate of features or proxies high."""

import logging

import torch
from torch.nn.functional import normalize

from criteria.base import Criterion
from criteria.coding_rate import coding_rate, max_coding_rate

VARIANTS = ("pair", "batch_proxy", "all_proxy")
FORMS = ("exp", "normalized")
DEAD = 1e-6  # below this, exp(-gam2 R) adds nothing that float32 Adam steps of the base loss would notice


class AntiCo(Criterion):
    """align · base + w · term(R), R the coding rate (nats) of

    - `pair`: the batch's embeddings, n = B, scale s = gam1 · d / (n eps);
    - `batch_proxy`: the proxies of the n classes in the batch, s = gam1 · n / (d eps);
    - `all_proxy`: all n = C proxies, s = gam1 · n / (d eps);

    and term(R) = exp(-gam2 R) (`form="exp"`, published) or 1 - R/R_max (`form="normalized"`), which lies in [0, 1] and
    keeps a gradient whatever the batch, the number of classes and the dimension (`exp` underflows beyond R of about 15).

    Parameters
    ----------
    base : Criterion
        The label-driven loss underneath; it must have `.proxies` (C, d) for the two proxy variants.
    raw_embeddings : bool
        True takes the embeddings of `pair` as the network gives them, as published, instead of L2-normalising them
        here. For networks that end in L2-normalisation the value is the same.

    `.logs` has the base's logs, `base`, `term`, `coding_rate` (R, nats) and `coding_rate_share` (R / R_max).

    Raises
    ------
    ValueError
        If variant or form is unknown, eps is not positive, or a proxy variant gets a base without proxies.

    Source: Jiang et al., Anti-Collapse Loss for Deep Metric Learning, IEEE TMM 2024, arXiv 2407.03106.
    """

    def __init__(self, base, variant="batch_proxy", form="normalized", align=1.0, w=1.0, gam1=1.0, gam2=1.0, eps=0.5,
                 raw_embeddings=False):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"--antico_type {variant}: must be one of {', '.join(VARIANTS)}")
        if form not in FORMS:
            raise ValueError(f"--antico_form {form}: must be one of {', '.join(FORMS)}")
        if eps <= 0:
            raise ValueError(f"--antico_eps {eps}: must be positive")
        if variant != "pair" and not hasattr(base, "proxies"):
            raise ValueError(f"--antico_base {base.name} has no proxies: antico_{variant} needs a proxy loss such as "
                             "proxyanchor; antico_pair goes with every base")
        self.name = f"antico_{variant}"
        self.base, self.variant, self.form, self.raw_embeddings = base, variant, form, raw_embeddings
        self.align, self.w, self.gam1, self.gam2, self.eps = align, w, gam1, gam2, eps
        self.n_classes = base.n_classes
        self.calls, self.said_dead = 0, form != "exp"

    @property
    def proxies(self):
        """The base loss's proxies (C, d), where it has such."""
        return self.base.proxies

    def param_groups(self, lr):
        return self.base.param_groups(lr)

    def rate(self, embeddings, labels):
        """R of this batch and its maximum, both in nats: two scalars."""
        if self.variant == "pair":
            Z = embeddings if self.raw_embeddings else normalize(embeddings, dim=1)
            n, d = Z.shape
            s = self.gam1 * d / (n * self.eps)
        else:
            if self.variant == "batch_proxy":
                # each class once: later samples of it get a zero row, which adds nothing to the determinant. The shapes
                # then depend on B alone, so nothing waits for the device and a compiled loss is compiled once.
                again = (labels[:, None] == labels[None, :]).tril(-1).any(1)
                Z = normalize(self.proxies[labels], dim=1).masked_fill(again[:, None], 0)
                n, d = (~again).sum(), Z.shape[1]
            else:
                Z = normalize(self.proxies, dim=1)
                n, d = Z.shape
            s = self.gam1 * n / (d * self.eps)
        return coding_rate(Z, s), max_coding_rate(n, d, s)

    def loss(self, embeddings, labels):
        base = self.base(embeddings, labels)
        rate, largest = self.rate(embeddings, labels)
        term = torch.exp(-self.gam2 * rate) if self.form == "exp" else 1 - rate / largest
        self.log(**self.base._logs, base=base, term=term, coding_rate=rate, coding_rate_share=rate / largest)
        self.say_if_dead(term, rate, embeddings.shape[1])
        return self.align * base + self.w * term

    def say_if_dead(self, term, rate, d):
        """One line, once, when the published form has no gradient left. Looks at every 100th call: reading waits for the device."""
        self.calls += 1
        if self.said_dead or self.calls % 100 != 1 or torch.compiler.is_compiling():
            return
        term = term.detach()
        if float(term) < DEAD:
            self.said_dead = True
            logging.getLogger("antico").warning(
                f"note: the published form exp(-R) has no gradient left: R = {float(rate.detach()):.1f} nats, exp(-R) = {float(term):.1e} "
                f"({self.variant}, d = {d}). --antico_form normalized keeps one."
            )
