"""Defaults that depend on the loss: for the command line and for who constructs a loss. Without torch, which takes seconds.

`antico` is the published command line. The three names below it use the form whose gradient lives; their weights come
from `antico_runs.sh sweep` (validation classes).
"""

ANTICO = {
    "antico": dict(antico_base="oproxy", loss_oproxy_mode="anchor", antico_form="exp"),
    "antico_pair": dict(
        antico_base="multisimilarity", antico_form="normalized", loss_ac_w_align=1.0, antico_w=0.1, antico_type="pair"
    ),
    "antico_batch_proxy": dict(
        antico_base="proxyanchor",
        antico_form="normalized",
        loss_ac_w_align=1.0,
        antico_w=30.0,
        antico_type="batch_proxy",
    ),
    "antico_all_proxy": dict(
        antico_base="proxyanchor",
        antico_form="normalized",
        loss_ac_w_align=1.0,
        antico_w=100.0,
        antico_type="all_proxy",
    ),
}
# of every one of them
SHARED = dict(antico_gam1=1.0, antico_gam2=1.0, antico_eps=0.5, antico_scale="published")
# what the name of a loss stands for where the flag is not given, as --loss or as --antico_base
LOSSES = {"contrastive": dict(batch_mining="all"), "triplet": dict(batch_mining="all"), **ANTICO}
