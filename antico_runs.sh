#!/usr/bin/env bash
# The runs behind every table. Usage:
#
#   bash antico_runs.sh quickstart                    five losses on the embedded data set, a table and a figure
#   bash antico_runs.sh sweep                         the search for the default weights, on validation classes of glyphs
#   bash antico_runs.sh cub200|cars196|online_products [DATA]   the paper's recipe; DATA is --source_path
#
# Environment: SEEDS="0 1 2" (default 0), OUT (results folder, default results), ARCH (paper's recipe, default resnet50),
# ANTICO_PYTHON (a prepared interpreter), EXTRA (more flags for main.py), WEIGHTS (of the sweep).
set -euo pipefail
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

SEEDS=${SEEDS:-0}
OUT=${OUT:-results}
EXTRA=${EXTRA:-}

# the settings of every glyphs run: Conv-4 on 32-pixel letters, right for two CPU cores
GLYPHS="--dataset glyphs --arch conv4_normalize --embed_dim 64 --bs 96 --samples_per_class 4 --data_sampler class_balanced
    --kernels 0 --lr 1e-3 --decay 1e-4 --no_train_metrics
    --evaluation_metrics e_recall@1 e_recall@2 e_recall@4 e_recall@8 nmi mAP@R coding_rate@share"

proxies() { # proxies LOSS: the rate of the proxies on glyphs, for the losses that have them
    case "$1" in proxyanchor | antico_batch_proxy | antico_all_proxy) echo "--loss_oproxy_lrmulti 3" ;; esac
}

train() { # train NAME FLAGS...
    local name=$1
    shift
    local seed
    for seed in $SEEDS; do
        # shellcheck disable=SC2086  # EXTRA is a list of words
        "$PYTHON" main.py --group "$name" --seed "$seed" "$@" $EXTRA
    done
}

quickstart() {
    local loss runs=$OUT/quickstart_runs
    rm -rf "$runs.old"
    if [ -e "$runs" ]; then mv "$runs" "$runs.old"; fi # the former run is kept once, so nothing is lost by a second try
    for loss in proxyanchor antico_batch_proxy antico_all_proxy multisimilarity antico_pair; do
        echo "== $loss"
        # shellcheck disable=SC2086
        train "$loss" $GLYPHS $(proxies "$loss") --n_epochs 5 --tau 4 --loss "$loss" --save_path "$runs"
    done
    echo
    "$PYTHON" -m utilities.report "$runs"/glyphs/{proxyanchor,antico_batch_proxy,antico_all_proxy,multisimilarity,antico_pair}_s* --out "$OUT/quickstart"
}

paper() { # paper DATASET EPOCHS FLAGS...: ProxyAnchor and AntiCo on it, as published
    local dataset=$1 epochs=$2
    shift 2
    local common="--dataset $dataset --n_epochs $epochs --arch ${ARCH:-resnet50}_frozen_normalize_double --embed_dim 512
        --bs 90 --samples_per_class 2 --lr 1e-5 --decay 4e-4 --data_sampler class_random --no_train_metrics --save_path $OUT/paper_runs"
    if [ -n "$DATA" ]; then common="$common --source_path $DATA"; fi
    # shellcheck disable=SC2086
    {
        train proxyanchor $common "$@" --loss oproxy --loss_oproxy_mode anchor
        train antico $common "$@" --loss antico --antico_type batch_proxy --antico_w 1 --antico_eps 0.5 --loss_ac_w_align 0.0035
    }
    "$PYTHON" -m utilities.report "$OUT/paper_runs/$dataset" --out "$OUT/$dataset"
}

sweep() { # each weight on validation classes (a fifth of the training classes); the test classes are not looked at
    local loss w weights runs=$OUT/sweep_runs
    for loss in antico_pair antico_batch_proxy antico_all_proxy; do
        weights="0 3 30 100 300 1000"
        if [ "$loss" = antico_pair ]; then weights="0 0.03 0.1 0.3 1"; fi
        for w in ${WEIGHTS:-$weights}; do
            # shellcheck disable=SC2086
            train "${loss}_w$w" $GLYPHS $(proxies "$loss") --n_epochs 8 --tau 6 --eval_every 8 --use_tv_split --tv_split_perc 0.8 --no_test_metrics \
                --loss "$loss" --antico_w "$w" --save_path "$runs"
        done
    done
    "$PYTHON" -m utilities.report "$runs" --split val --by antico_w --out "$OUT/sweep"
}

usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]##*/}"; }

task=${1:-}
DATA=${2:-}
case "$DATA" in "" | /*) ;; *) DATA=$started_in/$DATA ;; esac # given from where the user stands
case "$task" in
quickstart | sweep | cub200 | cars196 | online_products) ;;
"" | -h | --help) usage; exit 0 ;;
*) echo "error: $task: must be quickstart, sweep, cub200, cars196 or online_products" >&2; exit 2 ;;
esac

source utilities/environment.sh
antico_environment
case "$task" in
quickstart) quickstart ;;
sweep) sweep ;;
cub200) paper cub200 100 --tau 100 --gamma 0.5 --warmup 0 ;;
cars196) paper cars196 300 --tau 100 --gamma 0.5 --warmup 0 ;;
online_products) paper online_products 400 --tau 190 250 --gamma 0.2 --warmup 1 ;;
esac
