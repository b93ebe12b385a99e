"""fp16 with the gradient scaler, bf16 and torch.compile through main's training epoch, on the CPU."""

import functools
import math
import time

import miniatures
import pytest
import ranks
import torch

import main
from utilities import device as devices
from utilities import distributed


def make(dtype=None, init_scale=2.0**10, flags="--loss antico_pair --antico_base multisimilarity", kind="plain"):
    """A run in float32 whose network computes in `dtype`."""
    half = dtype == torch.float16
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=3, enabled=half)
    return ranks.make_run(flags, ranks.network(kind).float(), dtype=dtype, scaler=scaler)


def steps(run, n):
    """The losses of n steps, each an epoch of its own."""
    return [ranks.train_epoch(run, max(run.epoch, 0) + 1) for _ in range(n)]


def weights(run):
    state = run.model.state_dict().items()
    return {name: value.clone() for name, value in state if "tracked" not in name and "running" not in name}


def unchanged(run, before):
    return [name for name, value in weights(run).items() if torch.equal(value, before[name])]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("flags", ["--loss antico_pair", "--loss margin --batch_mining all", "--loss proxyanchor"])
def test_half_precision_follows_float32(dtype, tolerance, flags):
    expected, found = steps(make(flags=flags), 6), steps(make(dtype, 2.0**4, flags), 6)
    assert found[0] == pytest.approx(expected[0], rel=tolerance) and found != expected
    assert found == pytest.approx(expected, rel=0.05)  # Adam's first steps turn rounding into steps of full length


def test_the_gradient_is_unscaled_before_the_step():
    """Factor 16 on the way, 1 in the step: SGD's first step is float32's, to half precision."""
    flags = "--loss proxyanchor --optim sgd"  # pair losses see the rounding of embeddings that are nearly equal yet
    plain, half = make(flags=flags), make(torch.float16, 2.0**4, flags)
    before = weights(plain)
    steps(plain, 1), steps(half, 1)
    for name, old in before.items():
        expected, found = (weights(run)[name] - old for run in (plain, half))
        assert (found - expected).norm() <= 0.02 * expected.norm(), name


def test_an_infinite_gradient_skips_the_step_and_training_goes_on():
    run = make(torch.float16)
    steps(run, 2)
    before, count = weights(run), run.optimizer.state_dict()["state"][0]["step"].clone()
    handle = run.model.last_linear.weight.register_hook(lambda gradient: gradient * math.inf)
    (loss,) = steps(run, 1)  # finite, in every step
    handle.remove()
    assert math.isfinite(loss) and run.scaler.get_scale() == 2.0**9  # halved
    assert unchanged(run, before) == list(before) and run.optimizer.state_dict()["state"][0]["step"] == count
    steps(run, 2)
    assert unchanged(run, before) == [] and all(value.isfinite().all() for value in weights(run).values())


def test_resume_keeps_the_scale(tmp_path):
    """Five steps, a checkpoint, five more; the same from the checkpoint on, with a scale and a count of its own."""
    run = make(torch.float16)
    run.folder = str(tmp_path)
    steps(run, 5)
    run.save(), run.written()
    expected = steps(run, 5)

    again = make(torch.float16, init_scale=1.0)
    again.restore(str(tmp_path))
    assert again.scaler.get_scale() == 2.0**11 and again.scaler.state_dict()["_growth_tracker"] == 2
    assert steps(again, 5) == expected and again.scaler.get_scale() == run.scaler.get_scale() == 2.0**13
    assert unchanged(again, weights(run)) == list(weights(run))


def test_a_compiled_network_learns_the_same_and_is_compiled_once(monkeypatch):
    """After a warm-up too, in which the backbone has no gradient. With the compiler's cheapest back-end."""
    torch._dynamo.reset()
    compiled, plain = (make(flags=f"--loss antico_pair --warmup 2 --compile {how}") for how in ("on", "off"))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    start = weights(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for still in (set(start) - {"last_linear.weight", "last_linear.bias"}, set()):
            assert steps(compiled, 2) == pytest.approx(steps(plain, 2), rel=1e-4)
            assert set(unchanged(compiled, start)) == still
    assert isinstance(compiled.net, torch._dynamo.OptimizedModule) and compiled.net._orig_mod is compiled.model


@pytest.mark.parametrize("epochs, why", [(1, "too short"), (10**6, "does not work here (no Python.h"), (10**6, "")])
def test_auto_compiles_where_it_pays_and_works_and_says_why_not(monkeypatch, capsys, epochs, why):
    run = make(flags=f"--loss antico_pair --n_epochs {epochs}")
    run.device, run.model.input_size = torch.device("cuda"), 224

    def missing(function):
        raise RuntimeError("no Python.h")

    monkeypatch.setattr(torch, "compile", missing if "work" in why else lambda function: function)
    monkeypatch.setattr(torch, "ones", lambda n, device: None if why else 1)
    assert devices.whether_to_compile(run) == (not why)
    assert capsys.readouterr().out.count("note: --compile auto: not compiled") == bool(why)


@pytest.mark.parametrize("device, chunk", [("cuda", None), ("cuda", 4), ("cpu", None)])
def test_cuda_graphs_are_asked_of_the_compiler_where_they_can_be(monkeypatch, device, chunk):
    run = make(flags="--loss antico_pair --compile graphs")
    run.device, run.opt.grad_cache = torch.device(device), chunk
    if chunk or device == "cpu":
        with pytest.raises(ValueError, match="--compile graphs: "):
            devices.whether_to_compile(run)
        return
    assert devices.whether_to_compile(run)
    monkeypatch.setattr(torch, "compile", lambda model, **how: (model, how))
    model, how = distributed.replicate(run.model, run.device, run.opt.compile)
    assert model is run.model and how == dict(dynamic=False, mode="reduce-overhead")


def test_a_full_shm_names_the_flag_and_the_containers_option():
    words = "Caught RuntimeError ...\nunable to allocate shared memory(shm) for file </torch_1>: No space left"
    advice = devices.advice_on_memory(RuntimeError(words))
    assert "--shm-size" in advice and "--kernels" in advice and not devices.advice_on_memory(RuntimeError("a bug"))


def test_data_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 64)
    opt = ranks.parameters.parse([])
    assert opt.kernels == 6 and devices.number_of_workers(opt) == 16  # published, and what a card can take
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert devices.number_of_workers(opt) == 8
    assert devices.number_of_workers(ranks.parameters.parse(["--kernels", "6"])) == 6


@pytest.mark.parametrize("waits", [0.05, 0])
def test_an_epoch_says_when_it_waits_for_images(tmp_path, monkeypatch, capsys, waits):
    fetch = main.datasets.Split.__getitems__
    monkeypatch.setattr(main.datasets.Split, "__getitems__", lambda *words: (time.sleep(waits), fetch(*words))[1])
    miniatures.class_folders(tmp_path / "images", ["a", "b", "c", "d"], n=40)
    flags = f"""--dataset folder --source_path {tmp_path / "images"} --arch conv4_normalize --embed_dim 4 --bs 4
        --input_size 16 --kernels 0 --evaluation_metrics e_recall@1 --n_epochs 1 --save_path {tmp_path / "runs"}"""
    assert main.main(flags.split()) == 0
    assert ("waiting for images" in capsys.readouterr().out) == bool(waits)
