"""fp16 with the gradient scaler, bf16 and torch.compile through main's training step, on the CPU."""

import math

import pytest
import ranks
import torch

import main
from utilities import state


def make(dtype=None, init_scale=2.0**10, growth_interval=3, flags="--loss antico_pair", optim="adam"):
    """A run in float32 whose network computes in `dtype`."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=init_scale, growth_interval=growth_interval, enabled=dtype == torch.float16
    )
    run = ranks.make_run(flags, ranks.network(frozen=False).float(), optim=optim, dtype=dtype, scaler=scaler)
    main.make_net(run, warming_up=False)
    run.model.train()
    return run


def steps(run, first, n):
    """The losses of n steps."""
    losses = []
    for number in range(first, first + n):
        terms = main.training_step(run, *ranks.batch(number), epoch=1)
        run.progress.add(terms)
        losses.append(terms["loss"].item())
    return losses


def weights(run):
    return {
        name: value.clone()
        for name, value in run.model.state_dict().items()
        if "tracked" not in name and "running" not in name
    }


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("flags", ["--loss antico_pair", "--loss margin --batch_mining all", "--loss proxyanchor"])
def test_half_precision_follows_float32(dtype, tolerance, flags):
    expected, found = steps(make(flags=flags), 0, 6), steps(make(dtype, 2.0**4, flags=flags), 0, 6)
    assert found[0] == pytest.approx(expected[0], rel=tolerance) and found != expected
    assert found == pytest.approx(expected, rel=0.05)  # Adam's first steps turn rounding into steps of full length


def test_the_gradient_is_unscaled_before_the_step():
    """Factor 1024 on the way, 1 in the step: SGD's first step is float32's, to half precision."""
    runs = [make(optim="sgd"), make(torch.float16, optim="sgd")]
    before = weights(runs[0])
    for run in runs:
        steps(run, 0, 1)
    for name, old in before.items():
        expected, found = (weights(run)[name] - old for run in runs)
        assert (found - expected).norm() <= 0.05 * expected.norm() + 1e-7, name


def test_the_scale_grows_after_good_steps():
    run = make(torch.float16)
    steps(run, 0, 7)
    assert run.scaler.get_scale() == 2.0**12  # doubled after the third step and after the sixth


def test_an_infinite_gradient_skips_the_step_and_training_goes_on():
    run = make(torch.float16)
    steps(run, 0, 2)
    before, moments = weights(run), state_of(run.optimizer)

    def spoil(gradient):
        return gradient * math.inf

    handle = run.model.last_linear.weight.register_hook(spoil)
    loss = steps(run, 2, 1)
    handle.remove()
    assert math.isfinite(loss[0]) and run.scaler.get_scale() == 2.0**9  # halved
    assert (
        all(torch.equal(before[name], value) for name, value in weights(run).items())
        and state_of(run.optimizer) == moments
    )
    steps(run, 3, 2)
    assert not any(torch.equal(before[name], value) for name, value in weights(run).items())
    assert all(value.isfinite().all() for value in weights(run).values())
    assert math.isfinite(run.progress.means()["loss"])  # the loss was, in every step


def state_of(optimizer):
    return [float(s["step"]) for s in optimizer.state_dict()["state"].values()]


def test_a_scale_that_is_too_large_finds_its_way_down():
    run = make(torch.float16, init_scale=2.0**40)
    before = weights(run)
    steps(run, 0, 1)
    assert (
        all(torch.equal(before[name], value) for name, value in weights(run).items())
        and run.scaler.get_scale() == 2.0**39
    )
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**10})
    steps(run, 1, 1)
    assert not any(torch.equal(before[name], value) for name, value in weights(run).items())


def test_resume_keeps_the_scale(tmp_path):
    """Five steps, a checkpoint, five more; the same from the checkpoint on, with a scale and a count of its own."""
    run = make(torch.float16)
    checkpoints = keep(run, tmp_path)
    steps(run, 0, 5)
    checkpoints.save(run.progress)
    expected = steps(run, 5, 5)

    again = make(torch.float16, init_scale=1.0)
    progress = keep(again, tmp_path).restore(state.newest(tmp_path), str(tmp_path), ranks.CPU)
    assert (
        again.scaler.get_scale() == 2.0**11 and again.scaler.state_dict()["_growth_tracker"] == 2 and progress.step == 5
    )
    again.progress = progress
    assert steps(again, 5, 5) == expected and again.scaler.get_scale() == run.scaler.get_scale() == 2.0**13
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(again).items())


def keep(run, folder):
    parts = {name: getattr(run, name) for name in ("model", "criterion", "optimizer", "scaler")}
    checkpoints = state.Checkpoints(parts, {})
    checkpoints.folder = str(folder)
    return checkpoints


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grad_cache_in_half_precision(dtype):
    """In chunks or whole: the same but for half precision's rounding of the gradient's parts."""
    frozen = ranks.network(frozen=True).float()
    found = []
    for flags in ("--loss proxyanchor", "--loss proxyanchor --grad_cache 7"):
        scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=2.0**10)
        run = ranks.make_run(flags, frozen, dtype=dtype, scaler=scaler, optim="sgd")
        run.optimizer.param_groups[0]["lr"] = run.optimizer.param_groups[1]["lr"] = 0.0  # the same network for both
        main.make_net(run, warming_up=False)
        steps(run, 0, 1)
        found.append(torch.cat([g.flatten() for name, g in ranks.gradients(run).items() if "proxies" not in name]))
    assert (found[1] - found[0]).norm() < (0.01 if dtype == torch.float16 else 0.05) * found[0].norm()


def test_a_compiled_network_learns_the_same_and_is_compiled_once():
    """After a warm-up too, in which the backbone has no gradient. With the compiler's cheapest back-end.

    tests/test_main.py has the real one.
    """
    torch._dynamo.reset()
    compiled, plain = make(), make()
    compiled.compiled = torch.compile(compiled.model, backend="aot_eager")
    start = weights(compiled)
    for warming_up, first in ((True, 0), (False, 2)):
        for run in (compiled, plain):
            main.make_net(run, warming_up)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert steps(compiled, first, 2) == pytest.approx(steps(plain, first, 2), rel=1e-4)
        learned = {name for name, value in weights(compiled).items() if not torch.equal(value, start[name])}
        assert learned == (set(start) if not warming_up else {"last_linear.weight", "last_linear.bias"})
    assert isinstance(compiled.net, torch._dynamo.OptimizedModule) and compiled.net._orig_mod is compiled.model
