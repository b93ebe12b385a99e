"""The runs behind every table of antico_runs.sh, as dicts of main.py's flags: read them, change them, add your own.

A run has the flags of its data set (DATASETS), then of its base loss there (OF_BASE), its table (`flags`), its network
(`archs`) and its row (`rows`), then those of the command line; the later wins. True is a flag without a value, a list
one with several. `rows` and `archs` may be a dict with one list for "images" (photographs, a GPU) and one for "glyphs"
(two CPU cores). README.md says how they are run. Your own table is an entry in TABLES.
"""

from tables import study
from tables.study import each, over, product


def measures(*ks):
    """Recall@K, then what the published code reports, then the Reality Check's mAP@R and the collapse metrics."""
    return [*(f"e_recall@{k}" for k in ks), "nmi", "f1", "mAP_1000", "mAP@R", "coding_rate@share", "effective_rank"]


# --- data sets ---

# the published command lines, in float32; what differs between data sets follows
PUBLISHED = dict(
    arch="resnet50_frozen_normalize_double", embed_dim=512, bs=90, samples_per_class=2, data_sampler="class_random",
    lr=1e-5, decay=4e-4, loss_oproxy_lrmulti=2000, no_train_metrics=True, amp="none",
)  # fmt: skip
# embeddings, for the report's spectrum and t-SNE, where that is little: 12 MB a run of cub200, 124 of online_products
CUB = PUBLISHED | dict(
    n_epochs=100, tau=100, gamma=0.5, warmup=0, save_embeddings=True, evaluation_metrics=measures(1, 2, 4, 8)
)
SOP = PUBLISHED | dict(n_epochs=400, tau=[190, 250], gamma=0.2, warmup=1)
# two CPU cores
CORES = dict(
    bs=96, samples_per_class=4, data_sampler="class_balanced", kernels=0, decay=1e-4, no_train_metrics=True,
    evaluation_metrics=[*measures(1, 2, 4, 8)[:5], "mAP@R", "coding_rate@share", "effective_rank"],
)  # fmt: skip
LRMULTI = [f"loss_{loss}_lrmulti" for loss in ("oproxy", "proxynca", "normalized_softmax", "arcface")]
DATASETS = {
    "cub200": CUB,
    "cars196": CUB | dict(n_epochs=300),
    "online_products": SOP | dict(evaluation_metrics=measures(1, 10, 100, 1000)),
    # ours, not among the published lines: the schedule of online_products, the K of In-Shop's own paper
    "inshop": SOP | dict(evaluation_metrics=measures(1, 10, 20, 30)),
    "folder": CUB,  # one's own images
    # letters of 32 pixels: the rates at which a small network learns in five epochs, proxies three times the network's
    "glyphs": CORES | dict.fromkeys(LRMULTI, 3) | dict(
        arch="conv4_normalize", embed_dim=64, lr=1e-3, n_epochs=5, tau=4, save_embeddings=True,
        loss_nir_proxy_lrmulti=6, loss_nir_lrmulti=1,
    ),
    # a pretrained network, four minutes a run
    "emoji": CORES | dict.fromkeys(LRMULTI, 100) | dict(
        arch="timm.tf_efficientnet_lite0_frozen_normalize", embed_dim=128, input_size=64, lr=1e-4, n_epochs=6, tau=4,
        loss_nir_proxy_lrmulti=200, loss_nir_lrmulti=1,
    ),
}  # fmt: skip
# the published lines of nir; those of Cars have either no warm-up or one epoch: one here, as on CUB
OF_BASE = {
    ("cub200", "nir"): dict(loss_nir_w_align=0.0075, warmup=1),
    ("cars196", "nir"): dict(loss_nir_w_align=0.01, warmup=1),
    ("online_products", "nir"): dict(loss_nir_w_align=0.3, loss_nir_lrmulti=1, warmup=5, n_epochs=300, tau=[140, 230]),
}

# --- losses ---

PROXYANCHOR = dict(loss="proxyanchor")
OPROXY = dict(loss="oproxy", loss_oproxy_mode="anchor")  # Proxy-Anchor as in the published code: the base of ANTICO
# Published. The line of online_products is a reading: it names `--loss nir_mcr2`, which the published code does not
# have, with `--loss_nir_w_align 0.0035 --loss_nir_lrmulti 1` and no loss_ac_w_align. We take it for antico at 0.0035.
ANTICO = dict(loss="antico", antico_type="batch_proxy", antico_w=1, antico_eps=0.5, loss_ac_w_align=0.0035)
BATCH_PROXY, ALL_PROXY = dict(loss="antico_batch_proxy"), dict(loss="antico_all_proxy")
PAIR, PAIR_OVER_PROXYANCHOR = over("multisimilarity", "pair"), over("proxyanchor", "pair")
FEW = [PROXYANCHOR, BATCH_PROXY, ALL_PROXY, PAIR_OVER_PROXYANCHOR]  # where a table varies something else as well

# --- rows of the tables ---

PAIR_BASES = ["contrastive", "triplet", "margin", "npair", "multisimilarity"]
PROXY_BASES = ["proxyanchor", "oproxy", "proxynca", "normalized_softmax", "arcface", "nir"]


def bases():
    """Every base alone, then with each variant that applies: the proxy variants need proxies."""
    for base in PAIR_BASES + PROXY_BASES:
        mode = dict(loss_oproxy_mode="anchor") if base == "oproxy" else {}
        for variant in [None, "pair", "class_means", *(["batch_proxy", "all_proxy"] if base in PROXY_BASES else [])]:
            yield over(base, variant) | mode


def hyper(batches, samples, warmups):
    """batch_proxy, one hyperparameter changed at a time; the first row has the defaults. --loss names another."""
    return product([BATCH_PROXY | dict(antico_form="guard")], [
        {}, *each("antico_eps", 0.1, 0.25, 1, 2), *each("antico_w", 0, 0.1, 0.3, 3, 10), dict(antico_scale="mcr2"),
        *each("bs", *batches), *each("samples_per_class", *samples), *each("warmup", *warmups),
        dict(antico_form="exp", antico_w=1, loss_ac_w_align=0.0035),  # as published
        dict(antico_form="normalized", antico_w=30),  # a fixed weight
        dict(antico_form="neg", antico_w=8),  # 30 / 3.64 nats, the largest rate of 45 classes: as strong
    ])  # fmt: skip


# --- tables ---

RESNET50, CONV4 = "resnet50_frozen_normalize", "conv4_normalize"
POOLINGS = ("", "_double", "_lp2", "_lp3")
SMALL = dict(not_pretrained=True, input_size=32)  # a network for photographs on letters: nothing there is a ranking
PAPER = ["cub200", "cars196", "online_products"]
TABLES = {
    "quickstart": study.QUICKSTART,
    "main": dict(
        about="the losses on each data set, BN-Inception and ResNet-50, 512 dimensions",
        datasets=PAPER, rows=[PROXYANCHOR, OPROXY, over("nir"), ANTICO, *FEW[1:], over("multisimilarity"), PAIR],
        archs={"images": each("arch", "bninception_frozen_normalize_double", f"{RESNET50}_double"), "glyphs": [{}]},
    ),
    "dims": dict(
        about="64, 128, 512 and 1024 dimensions",
        datasets=PAPER, rows=[loss | dict(embed_dim=d) for d in (64, 128, 512, 1024) for loss in FEW],
    ),
    "bases": dict(about="every base loss, alone and under each variant that applies", datasets=PAPER, rows=[*bases()]),
    "hyper": dict(
        about="eps, w, scale, batch size, samples per class, warm-up and form, one at a time", datasets=PAPER,
        rows={
            "images": hyper([90, 250, 400], [2, 3, 5], [0, 1, 5, 10]),
            "glyphs": hyper([48, 96, 192], [2, 4, 8], [0, 1, 2]),
        },
    ),
    "pooling": dict(
        about="average, average + maximum, generalised mean of 2 and 3", datasets=PAPER, rows=FEW,
        archs={kind: each("arch", *(arch + pooling for pooling in POOLINGS))
               for kind, arch in (("images", RESNET50), ("glyphs", CONV4))},
    ),
    "backbones": dict(
        about="ResNet-50 against timm's ViT-S (supervised, DINO) and CLIP's ViT-B", datasets=PAPER, rows=FEW,
        archs={
            "images": each(
                "arch", f"{RESNET50}_double", "timm.vit_small_patch16_224_normalize",
                "timm.vit_small_patch16_224.dino_normalize", "timm.vit_base_patch16_clip_224.openai_normalize",
            ),
            "glyphs": [dict(arch=CONV4), *product(
                each("arch", "resnet18_normalize", "timm.test_vit_normalize", "timm.test_convnext_normalize"), [SMALL]
            )],
        },
    ),
    **study.TABLES,
    "grid": dict(
        about="your own: the product of values, --grid loss=proxyanchor,antico_pair --antico_base proxyanchor",
        datasets=["glyphs"], rows=[{}],
    ),
}  # fmt: skip
