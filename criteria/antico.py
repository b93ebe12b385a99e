"""The Anti-Collapse loss: a base loss plus a term that keeps the coding rate of features or proxies high."""

from typing import Literal

import torch
from torch.nn.functional import normalize

import criteria
from criteria.base import Criterion, NonFinite, ProxyCriterion, full_precision, need_choice, need_positive
from criteria.coding_rate import LARGE, LARGEST, coding_rate, max_coding_rate, needed_dtype
from criteria.pml import ModuleLoss

Variant = Literal["pair", "batch_proxy", "all_proxy", "class_means"]
OF_EMBEDDINGS = ("pair", "class_means")  # the others are of proxies
Form = Literal["exp", "neg", "normalized"]
Scale = Literal["published", "mcr2"]
DEAD = 1e-6  # below this, exp(-gam2 R) adds nothing that float32 Adam steps of the base loss would notice


class NoBase(Criterion):
    """The base of AntiCo alone (`--antico_base none`): always 0, so that the coding-rate term is all there is."""

    name = "none"

    def loss(self, embeddings, labels):
        return 0 * embeddings.sum()


class AntiCo(Criterion):
    """align · base + w · term(R), R = 1/2 logdet(I + gam1 s ZᵀZ) (nats) of the L2-normalised rows Z, which are

    - `pair`: the batch's embeddings, n = B;
    - `batch_proxy`: the proxies of the n classes in the batch;
    - `all_proxy`: all n = C proxies;
    - `class_means` (ours, not the paper's): the means of the L2-normalised embeddings of the n classes in the batch.
      Means are taken as they are: one is the longer, up to 1, the closer its class lies together. So R rises when
      classes part and when they draw together, where `pair` also drives the images of a class apart; R_max is reached
      by classes that are points, spread evenly.

    The term is, by `form`,

    - `exp`: exp(-gam2 R), published; it underflows beyond R of about 15;
    - `neg`: -gam2 R, MCR²'s expansion term;
    - `normalized`: 1 - R/R_max, which lies in [0, 1] and keeps a gradient whatever n and d.

    The scale s is, by `scale`,

    - `published`: d / (n eps) for `pair` and `class_means`, n / (d eps) for the proxies;
    - `mcr2`: d / (n eps²) for all four.

    Parameters
    ----------
    base : Criterion or any module (embeddings, labels) → scalar
        The label-driven loss underneath; for the two proxy variants with one vector a class: `.proxies` (C, d) or, as
        pytorch-metric-learning's class weights, `.W` (d, C).
    form, align, w, eps
        Where they are not given, those of the command line's `--loss antico_<variant>` over this base
        (criteria/__init__.py).
    raw_embeddings : bool
        True takes the embeddings of `pair` as the network gives them, as published, instead of L2-normalising them
        here. For networks that end in L2-normalisation the value is the same.
    w_proxies : float
        Not 0: the base is first put under `all_proxy` with this weight, its own default eps and the same form, scale,
        gam1 and gam2, so that embeddings and proxies are both kept apart. For `pair` and `class_means` over a loss
        with proxies.

    `.logs` has the base's logs, `base`, `term`, `coding_rate` (R, nats) and `coding_rate_share` (R / R_max), and of the
    term of w_proxies `proxies_term`, `proxies_coding_rate` and `proxies_coding_rate_share`.

    Raises
    ------
    ValueError
        If variant, form or scale is unknown, eps, gam1 or gam2 is not positive, or a proxy variant gets a base without
        proxies. While training (`NonFinite`), if raw embeddings are too long for a coding rate in float64.

    Source: Jiang et al., Anti-Collapse Loss for Deep Metric Learning, IEEE TMM 2024, arXiv 2407.03106; MCR²: Yu et
    al., NeurIPS 2020, eq. 1 and 8.
    """

    def __init__(
        self,
        base,  # --antico_base: the loss underneath
        variant: Variant = "batch_proxy",  # --antico_type: what fills the space; the names antico_pair, ... fix it
        form: Form = None,  # --antico_form: exp(-gam2 R) as published, -gam2 R as in MCR2, or 1 - R/R_max
        align: float = None,  # --loss_ac_w_align: weight of the base loss
        w: float = None,  # --antico_w: weight of the coding-rate term
        gam1=1.0,  # --antico_gam1: factor of the scale inside the rate
        gam2=1.0,  # --antico_gam2: factor of the rate (forms exp and neg)
        eps: float = None,  # --antico_eps: precision; at --antico_scale published it stands where MCR2 has its square
        scale: Scale = "published",  # --antico_scale: d/(n eps), for proxies n/(d eps); or d/(n eps^2) for both
        raw_embeddings=False,
        w_proxies=0.0,  # --antico_w_proxies: weight of all proxies' rate beside that of pair or class_means
    ):
        super().__init__()
        need_choice(Variant, antico_type=variant)
        base = base if isinstance(base, Criterion) else ModuleLoss(base)
        own = criteria.antico_defaults(variant, base.name)
        form = own["antico_form"] if form is None else form
        need_choice(Form, antico_form=form)
        need_choice(Scale, antico_scale=scale)
        eps = own["antico_eps"] if eps is None else eps
        need_positive(antico_eps=eps, antico_gam1=gam1, antico_gam2=gam2)
        if variant not in OF_EMBEDDINGS and not hasattr(base, "proxies"):
            raise ValueError(
                f"--antico_base {base.name} has no proxies, one a class: antico_{variant} needs a proxy loss such as "
                "proxyanchor; antico_pair and antico_class_means go with every base"
            )
        self.name = f"antico_{variant}"
        self.base, self.variant, self.form, self.scale, self.raw_embeddings = base, variant, form, scale, raw_embeddings
        self.align = own["loss_ac_w_align"] if align is None else align
        self.w = own["antico_w"] if w is None else w
        self.gam1, self.gam2, self.eps = gam1, gam2, eps
        self.n_classes, self.embed_dim = base.n_classes, base.embed_dim
        if w_proxies:
            if variant not in OF_EMBEDDINGS or not hasattr(base, "proxies"):
                raise ValueError(
                    f"--antico_w_proxies {w_proxies:g}: goes with antico_pair and antico_class_means over a loss with "
                    f"proxies, such as proxyanchor; here it is antico_{variant} over {base.name}"
                )
            self.base = AntiCo(base, "all_proxy", form, 1.0, w_proxies, gam1, gam2, scale=scale)
        if variant not in OF_EMBEDDINGS:
            self.needed_dtype(*base.proxies.shape)  # told now, not in the first step

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

    def rows(self, embeddings, labels, proxies):
        """(Z, n, at most so many rows that are not zero). Rows beyond the n that count are zero: they add nothing."""
        if self.variant in OF_EMBEDDINGS:
            raw = self.raw_embeddings and self.variant == "pair"
            Z = embeddings if raw else normalize(embeddings, dim=1)
        else:
            Z = normalize(full_precision(self.proxies), dim=1) if proxies is None else proxies
        if self.variant in ("pair", "all_proxy"):
            return Z, len(Z), len(Z)
        # each class once: later samples of it get a zero row. The shapes then depend on B alone, so nothing waits for
        # the device and a compiled loss is compiled once.
        same = labels[:, None] == labels[None, :]
        again = same.tril(-1).any(1)
        if self.variant == "batch_proxy":
            most, Z = min(len(Z), len(labels)), Z[labels]
        else:
            most, Z = len(labels), same.to(Z.dtype) @ Z / same.sum(1, keepdim=True)
        return Z.masked_fill(again[:, None], 0), (~again).sum().to(Z.dtype), most

    def rate(self, embeddings, labels, proxies=None):
        """R of this batch and its maximum, in nats: two scalars. `proxies`: L2-normalised, where they are at hand."""
        Z, n, rows = self.rows(embeddings, labels, proxies)
        d = Z.shape[1]
        s = self.scale_of(n, d)
        dtype = torch.promote_types(Z.dtype, self.needed_dtype(rows, d))
        return coding_rate(Z, s, dtype).to(Z.dtype), max_coding_rate(n, d, s)

    def needed_dtype(self, n, d):
        """float64 where float32 loses the identity. The rows' lengths are not read, which would wait for the device.

        ValueError, one line, where float64 loses it too.
        """
        trace = n * self.scale_of(n, d)  # of unit rows
        if trace > LARGEST:
            raise ValueError(
                f"--antico_eps {self.eps:g} --antico_gam1 {self.gam1:g}: the rate's scale times "
                f"its rows is {trace:.0e}, beyond {LARGEST:.0e}: float64 loses the identity"
            )
        raw = self.raw_embeddings and self.variant == "pair"
        return torch.float64 if raw or trace > LARGE else torch.float32

    def check_values(self, embeddings, labels):
        super().check_values(embeddings, labels)
        if self.raw_embeddings and self.variant == "pair":
            try:
                needed_dtype(full_precision(embeddings.detach()), self.scale_of(*embeddings.shape))
            except ValueError as problem:
                raise NonFinite(f"{self.name}: {problem}: an --arch that ends in _normalize does") from problem

    def loss(self, embeddings, labels):
        if isinstance(self.base, ProxyCriterion):  # the proxies are normalised once for both
            proxies = normalize(self.proxies.to(embeddings.dtype), dim=1)
            base = self.base.proxy_loss(normalize(embeddings, dim=1), proxies, labels)
        else:
            proxies, base = None, self.base(embeddings, labels)
        rate, largest = self.rate(embeddings, labels, proxies)
        if self.form == "exp":
            term = torch.exp(-self.gam2 * rate)
        else:
            term = -self.gam2 * rate if self.form == "neg" else 1 - rate / largest
        own = dict(base=base, term=term, coding_rate=rate, coding_rate_share=rate / largest)
        of_base = self.base._logs
        if isinstance(self.base, AntiCo):  # of w_proxies
            own["base"] = of_base["base"]
            of_base = {f"proxies_{name}" if name in own else name: of_base[name] for name in of_base if name != "base"}
        self.log(**{**of_base, **own})  # a base may have names of its own among these, as nir does
        return self.align * base + self.w * term

    def note(self, rows):
        """The first epoch in which the published form has no gradient left."""
        dead = [row["epoch"] for row in rows if row.get("loss/term", 1) < DEAD]
        if self.form != "exp" or not dead or dead != [rows[-1]["epoch"]]:
            return ""
        return (
            f"note: the published form exp(-R) has no gradient left: R = {rows[-1]['loss/coding_rate']:.1f} nats, "
            f"exp(-R) = {rows[-1]['loss/term']:.1e} ({self.variant}). --antico_form normalized keeps one."
        )
