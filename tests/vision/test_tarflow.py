"""TarFlow: patches as tokens, noise and its effect on the likelihood, guidance, denoising."""

import copy

import numpy as np
import pytest
import torch
import yaml

from arflows.core.inversion import GaussSeidelJacobi, Jacobi, use_solver
from arflows.core.likelihood import dequantization
from arflows.core.runtime.errors import UserError
from arflows.vision import ImageFlow, RealNVP, TarFlow, evaluate, sample, train
from arflows.vision.tarflow import ClassEmbedding, Patches
from tests.launch import command

SMALL = {"patch_size": 2, "blocks": 3, "layers": 1, "width": 16, "heads": 2}


def trained_like(model: TarFlow, scale: float = 0.05) -> TarFlow:
    """A model with noise on its parameters, standing in for a trained one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def conditional(noise: float = 0.0, **options) -> TarFlow:
    torch.manual_seed(0)
    return trained_like(TarFlow((4, 6), 1, classes=3, noise=noise, **SMALL, **options))


def images(model: ImageFlow, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, *model.spec.shape), dtype=torch.uint8, generator=generator)


def test_patches_are_cut_row_by_row():
    cut = Patches((1, 4, 6), 2)
    image = torch.arange(24.0).reshape(1, 1, 4, 6)
    patches = cut(image)
    assert patches.shape == (1, cut.count, cut.size) == (1, 6, 4)
    assert patches[0, 1].tolist() == [2, 3, 8, 9]
    assert patches[0, 3].tolist() == [12, 13, 18, 19]
    colours = torch.randn(2, 3, 8, 4)
    assert torch.equal(Patches((3, 8, 4), 4).joined(Patches((3, 8, 4), 4)(colours)), colours)


def test_blocks_alternate_in_direction():
    """The last patch's latent depends on the first patch in every block; the first's on the last only every other."""
    model = trained_like(TarFlow(4, 1, 2, blocks=1, layers=1, width=8, heads=1), 0.3)
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., 2:, 2:] += 0.1  # the last patch
    moved = (model.bijection(changed)[0] - model.bijection(x)[0]).abs()[0].unflatten(0, (4, 4)).amax(1)
    assert (moved > 1e-6).tolist() == [False, False, False, True]
    flows = TarFlow(4, 1, 2, blocks=4, layers=1, width=8, heads=1).bijection.flows
    orders = [None if flow.order is None else flow.order.tolist() for flow in flows]
    assert orders == [None, [3, 2, 1, 0], None, [3, 2, 1, 0]]


@pytest.mark.parametrize("solver", [Jacobi(1e-7), GaussSeidelJacobi(4, 1e-7)], ids=lambda s: type(s).__name__)
def test_every_solver_draws_the_same_images(solver):
    model = conditional()
    expected = model.sample(4, 1, generator=torch.Generator().manual_seed(2))
    with use_solver(solver) as reports:
        assert torch.equal(model.sample(4, 1, generator=torch.Generator().manual_seed(2)), expected)
    assert [report.solver for report in reports] == [type(solver).__name__] * 3


def test_log_prob_is_that_of_the_jacobian():
    model = conditional().double()
    x = torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context = model.context_encoder(torch.tensor([1]))
    jacobian = torch.autograd.functional.jacobian(lambda v: model.bijection(v[None], context)[0][0], x[0])
    expected = jacobian.reshape(24, 24).slogdet().logabsdet
    torch.testing.assert_close(model.bijection(x, context)[1][0], expected, atol=1e-9, rtol=0)


# ------------------------------------------------------------------------------------------------------------- noise


def test_without_noise_the_likelihood_is_a_bound_with_noise_a_density():
    plain, noisy = conditional(), conditional(noise=0.05)
    assert (plain.likelihood, noisy.likelihood) == ("bound", "density")
    assert dequantization(plain) == "uniform dequantisation, 1 draw"
    assert dequantization(noisy) == "Gaussian noise of 6.4 integers' standard deviation, 1 draw"


def test_noise_is_of_the_standard_deviation_asked_for():
    model = TarFlow(8, 1, 2, blocks=1, layers=1, width=8, heads=1, noise=0.2)
    x = images(model, 200)
    torch.manual_seed(0)
    y, _ = model.dequantizer(x)
    error = 2 * (y - (x + 0.5) / 256)  # in [−1, 1]
    assert error.std().item() == pytest.approx(0.2, rel=0.03)
    assert abs(error.mean().item()) < 0.01


def test_the_density_counts_grey_levels():
    """The identity flow: its density of a noisy image is the normal one of pixels in [−1, 1], 2/256 for each level."""
    model = TarFlow(4, 1, 2, blocks=1, layers=1, width=8, heads=1, noise=0.1)
    x = images(model, 3)
    torch.manual_seed(0)
    got = model.log_prob(x)
    torch.manual_seed(0)
    noisy = 2 * model.dequantizer(x)[0] - 1
    expected = torch.distributions.Normal(0, 1).log_prob(noisy).flatten(1).sum(1) + 16 * np.log(2 / 256)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-6)


def test_denoising_takes_a_normal_density_to_its_posterior_mean():
    """Pixels of [−1, 1] as the identity flow has them, N(0, 1) with noise in it: E[x | y] = (1 − σ²) y."""
    model = TarFlow(4, 1, 2, blocks=1, layers=1, width=8, heads=1, noise=0.3).eval()
    y = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    clean = model.denoised(y)
    torch.testing.assert_close(2 * clean - 1, (1 - 0.3**2) * (2 * y - 1))
    assert not clean.requires_grad


def test_denoised_samples_differ_from_noisy_ones():
    model = conditional(noise=0.5)
    noisy = model.sample(4, 0, generator=torch.Generator().manual_seed(0))
    clean = model.sample(4, 0, generator=torch.Generator().manual_seed(0), denoise=True)
    assert not torch.equal(noisy, clean)


# ---------------------------------------------------------------------------------------------------------- guidance


def test_guidance_of_zero_changes_nothing_and_more_changes_more():
    model = conditional()
    draws = [model.sample(16, 2, generator=torch.Generator().manual_seed(0), guidance=w).float() for w in (0, 0.5, 2)]
    assert torch.equal(draws[0], model.sample(16, 2, generator=torch.Generator().manual_seed(0)).float())
    near, far = ((draw - draws[0]).abs().mean() for draw in draws[1:])
    assert 0 < near < far


def test_guidance_combines_mean_and_log_scale():
    """By hand, token by token, with one block."""
    torch.manual_seed(0)
    model = trained_like(TarFlow(4, 1, 2, blocks=1, layers=1, width=8, heads=2, classes=3), 0.3).double()
    (flow,) = model.bijection.flows
    labels = torch.tensor([2, 0])
    given, without = model.context_encoder(labels), model.context_encoder(torch.tensor([3, 3]))
    z = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.zeros_like(z)
    with torch.no_grad():
        for token in range(4):
            (mean, scale), (mean_0, scale_0) = (flow.conditioner(x, c)[:, token].unbind(-1) for c in (given, without))
            mean, scale = 2.5 * mean - 1.5 * mean_0, 2.5 * scale - 1.5 * scale_0
            x[:, token] = z[:, token] * flow.elementwise.log_scale(scale).exp() + mean
        guided = model.bijection.guided(1.5)
        got, _ = guided.inverse(z.flatten(1), torch.cat([given, without], 1))
    torch.testing.assert_close(2 * model.bijection.patches(got) - 1, x)


def test_the_log_prob_of_guided_samples_is_the_models():
    model = conditional()
    torch.manual_seed(0)
    drawn, log_prob = model.sample_with_log_prob(3, 1, generator=torch.Generator().manual_seed(0), guidance=1.0)
    with torch.no_grad():
        draws = torch.stack([model.log_prob(drawn, torch.full((3,), 1)) for _ in range(100)])
    assert ((log_prob - draws.mean(0)).abs() < 6 * draws.std(0)).all()


def test_sampling_leaves_model_and_mode_alone():
    model = conditional(noise=0.1)
    before = copy.deepcopy(model.state_dict())
    for mode in (True, False):
        model.train(mode)
        model.sample(2, 0, guidance=1.0, denoise=True)
        assert all(module.training is mode for module in model.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_are_withheld_in_training_alone():
    encoder = ClassEmbedding(3, 4, dropout=0.25)
    labels = torch.arange(3).repeat(1000)
    torch.manual_seed(0)
    withheld = (encoder(labels) == encoder.vectors.weight[3]).all(1)
    assert 0.2 < withheld.float().mean() < 0.3
    assert torch.equal(encoder.eval()(labels), encoder.vectors(labels))


# ---------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TarFlow(8, 1, 3), "patch_size=3 does not tile images of 8×8 pixels"),
        (lambda: TarFlow(8, 1, 2, noise=-1), "noise=-1"),
        (lambda: TarFlow(8, 1, 2, label_dropout=1.0), "label_dropout=1.0"),
        (lambda: TarFlow(8, 1, 2, width=10, heads=4), "width=10 must be a multiple of heads=4"),
        (lambda: conditional().sample(1, denoise=True), "without noise"),
        (lambda: TarFlow(4, 1, **SMALL).sample(1, guidance=1.0), "guidance needs a model with classes"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_commands_train_sample_and_evaluate(digits, tmp_path, capsys):
    recipe = {
        "model": {
            "flow": {
                "class_path": "arflows.vision.TarFlow",
                "init_args": {"image_size": 8, "channels": 1, "classes": 10, "noise": 0.1, **SMALL},
            }
        },
        "data": {"store": str(digits), "batch_size": 32},
        "trainer": {"max_steps": 4, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    command(train)(["--config", str(tmp_path / "recipe.yaml"), "--out", str(run)])
    capsys.readouterr()
    words = ["--model", str(run), "--count", "4", "--label", "3"]
    command(sample)([*words, "--out", str(tmp_path / "plain"), "--solver", "jacobi"])
    assert "density of continuous data by Gaussian noise" in capsys.readouterr().out
    command(sample)([*words, "--out", str(tmp_path / "sequential")])
    command(sample)([*words, "--out", str(tmp_path / "guided"), "--guidance", "1.5", "--denoise", "true"])
    plain, sequential, guided = (np.load(tmp_path / name / "samples.npz") for name in ("plain", "sequential", "guided"))
    np.testing.assert_array_equal(plain["images"], sequential["images"])
    assert "guidance" not in plain
    assert (guided["guidance"], guided["denoise"]) == (1.5, True)
    command(evaluate)(["--model", str(run), "--store", str(digits), "--out", str(tmp_path / "e.json")])
    assert "density of continuous data by Gaussian noise" in capsys.readouterr().out


def test_options_of_tarflow_are_refused_elsewhere(tmp_path, fails):
    RealNVP(8, 1, scales=1, blocks=1, width=4).save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--guidance", "1"]
    assert "--guidance are for a TarFlow" in fails(2, command(sample), words)
