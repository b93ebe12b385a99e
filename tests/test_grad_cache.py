"""--grad_cache: the gradient of a batch that is embedded in chunks is the whole batch's (Gao et al., 2021)."""

import miniatures
import pytest
import ranks
import torch
from torch import nn

import main
from utilities import state


def step(flags, model, dtype=torch.float64, warming_up=False):
    """(loss, gradients) of one training step on a batch of 24."""
    run = ranks.make_run(flags, model.to(dtype))
    main.make_net(run, warming_up=warming_up)
    run.model.train()
    images, labels = ranks.batch(0)
    terms = main.training_step(run, images, labels, epoch=1)
    return terms["loss"].item(), ranks.gradients(run)


def difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in b)


@pytest.mark.parametrize(
    "loss",
    [
        "margin --batch_mining distance",
        "proxyanchor",
        "antico",
        "antico_pair",
        "antico_batch_proxy",
        "antico_all_proxy",
        "antico_class_means",
    ],
)
@pytest.mark.parametrize("chunk", [1, 5, 8, 100])  # of 24: two that divide it, one that does not, one larger
def test_gradient_is_that_of_the_whole_batch(loss, chunk):
    expected = step(f"--loss {loss}", ranks.network(frozen=True))
    loss_value, found = step(f"--loss {loss} --grad_cache {chunk}", ranks.network(frozen=True))
    assert loss_value == pytest.approx(expected[0], rel=1e-12) and difference(found, expected[1]) < 1e-10


@pytest.mark.parametrize("loss", ["margin --batch_mining distance", "proxyanchor", "antico_batch_proxy"])
def test_gradient_in_float32(loss):
    _, expected = step(f"--loss {loss}", ranks.network(frozen=True), torch.float32)
    _, found = step(f"--loss {loss} --grad_cache 5", ranks.network(frozen=True), torch.float32)
    ours, theirs = (torch.cat([g.flatten() for g in grads.values()]) for grads in (found, expected))
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def test_warm_up_leaves_the_backbone_without_gradient():
    expected = step("--loss margin", ranks.network(frozen=True), warming_up=True)
    found = step("--loss margin --grad_cache 5", ranks.network(frozen=True), warming_up=True)
    assert not any("features" in name for name in found[1]) and difference(found[1], expected[1]) < 1e-10


class Watched(nn.Dropout):
    """Dropout that keeps what it let through."""

    def forward(self, x):
        y = super().forward(torch.ones_like(x)) if self.training else torch.ones_like(x)
        self.masks = [*getattr(self, "masks", []), y.detach().bool()]
        return x * y


def test_dropout_is_the_same_when_a_chunk_is_embedded_again():
    model = ranks.network(frozen=True)
    model.features[1] = Watched(0.5)
    _, found = step("--loss proxyanchor --grad_cache 5", model)
    masks = model.features[1].masks
    first, again = masks[:5], masks[5:]
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], first[1])
    # and so the gradient is that of the whole batch under these masks
    expected = ranks.network(frozen=True)
    expected.features[1] = Fixed(torch.cat(first).double() / 0.5)
    assert difference(found, step("--loss proxyanchor", expected)[1]) < 1e-10


class Fixed(nn.Module):
    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return x * self.factors


def test_main_trains_with_it_to_the_same_weights_and_refuses_batchnorm_that_is_not_frozen(tmp_path, capsys):
    for part, classes in (("train", 4), ("test", 2)):
        for n in range(4 * classes):
            miniatures.noise(tmp_path / "images" / part / f"{part}{n % classes}" / f"{n}.png", seed=n, size=(40, 36))
    flags = [
        *"--dataset folder --source_path".split(),
        str(tmp_path / "images"),
        *(
            "--embed_dim 8 --bs 8 --kernels 0 --loss proxyanchor --no_train_metrics --evaluation_metrics "
            "e_recall@1 --n_epochs 2"
        ).split(),
    ]
    weights = []
    for name, more in (("whole", []), ("chunks", ["--grad_cache", "3"])):
        assert (
            main.main(
                [*flags, *more, "--arch", "conv4_frozen_normalize", "--save_path", str(tmp_path), "--savename", name]
            )
            == 0
        )
        weights.append(state.load(tmp_path / "folder" / name / "checkpoint.pt")["model"])
    assert all(torch.allclose(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-5) for name in weights[0])
    capsys.readouterr()
    argv = [
        *flags,
        *"--grad_cache 3 --arch conv4_normalize --save_path".split(),
        str(tmp_path),
        "--savename",
        "refused",
    ]
    assert main.main(argv) == 2 and not (tmp_path / "folder" / "refused").exists()
    text = capsys.readouterr().err
    assert text.startswith("error: --grad_cache 3: needs BatchNorm with frozen statistics") and text.count("\n") == 1
    assert "--arch conv4_normalize the suffix _frozen" in text
