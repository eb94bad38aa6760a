"""The models of images: shared and individual properties."""

import math

import pytest
import torch

from arflows.core.bijections import BatchNorm, ChannelMask, CheckerboardMask, ColumnMask, Coupling, InvertibleConv1x1
from arflows.core.conditioners import ResidualCNN
from arflows.core.runtime.errors import UserError
from arflows.vision import MAF, FlowPlusPlus, Glow, ImageFlow, RealNVP, TarFlow

MODELS = {
    "realnvp": lambda: RealNVP(8, 3, scales=2, blocks=1, width=8),
    "realnvp_padded": lambda: RealNVP((7, 10), 1, scales=2, blocks=1, width=8),
    "realnvp_conditional": lambda: RealNVP(8, 1, scales=1, blocks=1, width=8, classes=3),
    "glow": lambda: Glow(8, 3, levels=2, steps=2, width=8),
    "glow_conditional": lambda: Glow((6, 8), 1, levels=2, steps=1, width=8, classes=3),
    "flowpp": lambda: FlowPlusPlus(8, 3, blocks=1, width=8, components=2, heads=2),
    "flowpp_conditional": lambda: FlowPlusPlus(
        (6, 8), 1, blocks=1, width=8, components=2, heads=0, dequantization="uniform", classes=3
    ),
    "tarflow": lambda: TarFlow(8, 3, patch_size=4, blocks=2, layers=2, width=16, heads=2),
    "tarflow_conditional": lambda: TarFlow((6, 8), 1, patch_size=2, blocks=2, layers=1, width=16, heads=2, classes=3),
    "maf": lambda: MAF(6, 1, transforms=2, hidden_features=(32,)),
    "maf_conditional": lambda: MAF((4, 6), 3, transforms=2, hidden_features=(64,), alpha=0.05, classes=3),
}
every_model = pytest.mark.parametrize("name", MODELS)


def trained_like(name: str, dtype: torch.dtype = torch.float32) -> ImageFlow:
    """A model with noise on its parameters, standing in for a trained one."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def data(model: ImageFlow, count: int = 4) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, *model.spec.shape), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % model.classes if model.classes else None


@every_model
def test_round_trip_reconstructs_every_pixel(name):
    model = trained_like(name)
    images, labels = data(model)
    latents = model.encode(images, labels)
    assert latents.shape == (4, *model.base.shape)
    assert torch.equal(model.decode(latents, labels), images)
    assert model.round_trip_error(images, labels).max() <= 1e-5
    assert trained_like(name, torch.float64).round_trip_error(images, labels).max() <= 1e-9


@every_model
def test_samples_are_images(name):
    model = trained_like(name)
    images, log_prob = model.sample_with_log_prob(5, temperature=0.7, generator=torch.Generator().manual_seed(3))
    assert images.dtype == torch.uint8
    assert images.shape == (5, *model.spec.shape)
    assert log_prob.shape == (5,)
    assert torch.equal(images, model.sample(5, temperature=0.7, generator=torch.Generator().manual_seed(3)))


@every_model
def test_log_prob_compiles_to_one_graph_and_gives_gradients(name):
    model = trained_like(name)
    images, labels = data(model)
    torch._dynamo.reset()
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    got = compiled(images, labels)
    torch.manual_seed(0)
    torch.testing.assert_close(got, model.log_prob(images, labels), rtol=1e-4, atol=1e-2)
    got.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@every_model
def test_log_prob_compiles_with_inductor(name):
    model = trained_like(name)
    images, labels = data(model)
    torch._dynamo.reset()
    got = torch.compile(model.log_prob, fullgraph=True)(images, labels)
    assert got.isfinite().all()
    torch.testing.assert_close(got, model.log_prob(images, labels), rtol=1e-2, atol=1)


@every_model
def test_log_prob_stays_float32_under_autocast(name):
    model = trained_like(name)
    images, labels = data(model)
    torch.manual_seed(0)
    full = model.log_prob(images, labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.log_prob(images, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


@every_model
def test_saves_and_loads(name, tmp_path):
    model = trained_like(name)
    images, labels = data(model)
    model.save_pretrained(tmp_path)
    again = ImageFlow.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert torch.equal(model.encode(images, labels), again.encode(images, labels))


@every_model
def test_training_improves_the_likelihood(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    images, labels = data(model, 16)
    images = images // 16 + 100  # something to learn
    model.initialize(images, labels)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = -model.log_prob(images, labels).mean() / model.dims
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_realnvp_is_laid_out_as_in_the_paper():
    model = RealNVP(image_size=32, channels=3, scales=2, blocks=8, width=64)
    couplings = [module for module in model.modules() if isinstance(module, Coupling)]
    kinds = [type(coupling.mask) for coupling in couplings]
    assert kinds == [CheckerboardMask] * 3 + [ChannelMask] * 3 + [CheckerboardMask] * 4
    assert [coupling.mask.channels for coupling in couplings] == [3] * 3 + [12] * 3 + [6] * 4
    networks = [coupling.conditioner for coupling in couplings]
    assert all(isinstance(network, ResidualCNN) and len(network.blocks) == 8 for network in networks)
    assert [network.output_proj.in_channels for network in networks] == [64] * 3 + [128] * 3 + [128] * 4
    assert len([module for module in model.modules() if isinstance(module, BatchNorm)]) == 10
    assert model.base.shape == (3 * 32 * 32,)


def test_flowpp_is_laid_out_as_in_the_published_code():
    model = FlowPlusPlus()
    couplings = [module for module in model.bijection.modules() if isinstance(module, Coupling)]
    assert [type(coupling.mask) for coupling in couplings] == [ColumnMask] * 4 + [ChannelMask] * 2 + [ColumnMask] * 3
    assert [coupling.mask.channels for coupling in couplings] == [3] * 4 + [12] * 5
    noise = [module for module in model.dequantizer.modules() if isinstance(module, Coupling)]
    assert [len(coupling.conditioner.convs) for coupling in couplings + noise] == [10] * 9 + [2] * 4
    # 31,443,440 there, of which activation normalisation has 2 · 3072 · 9 + 2 · 3072 · 4 rather than a pair a channel.
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(31_443_440, rel=0.01)


def test_flowpp_log_det_is_that_of_the_jacobian():
    torch.manual_seed(0)
    model = FlowPlusPlus(4, 1, blocks=1, width=8, components=3, heads=2).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    y = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    z, log_det = model.bijection(y)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.bijection(v)[0], y).reshape(16, 16)
    torch.testing.assert_close(jacobian.slogdet().logabsdet, log_det[0], atol=1e-8, rtol=0)
    torch.testing.assert_close(model.bijection.inverse(z)[0], y, atol=1e-9, rtol=0)


def test_learned_noise_starts_near_uniform_noise():
    torch.manual_seed(0)
    model = FlowPlusPlus(8, 1, blocks=1, width=8, components=4, heads=2).eval()
    images, _ = data(model, 64)
    _, log_volume = model.dequantizer(images)
    assert (log_volume / 64 + math.log(256)).abs().mean() < 0.2


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(32, [32, 16, 8, 4]), (28, [32, 16, 8, 4]), (8, [8, 4]), (64, [64, 32, 16, 8, 4])],
)
def test_scales_adapt_to_the_image(size, sizes):
    model = RealNVP(size, 1, scales=None, blocks=1, width=2)
    heights = [
        m.mask.kept_pixels.shape[0]
        for m in model.modules()
        if isinstance(m, Coupling) and isinstance(m.mask, CheckerboardMask)
    ]
    assert sorted(set(heights), reverse=True) == sizes


def test_glow_has_levels_of_steps():
    model = Glow(32, 3, levels=3, steps=4, width=8)
    convolutions = [m.log_scale.shape[0] for m in model.modules() if isinstance(m, InvertibleConv1x1)]
    assert convolutions == [12] * 4 + [24] * 4 + [48] * 4


def test_the_frame_is_part_of_what_is_modelled():
    """bits/dim count the image's own pixels, and the frame never comes back."""
    model = trained_like("realnvp_padded")
    assert model.spec.shape == (1, 7, 10)
    assert model.dims == 70
    assert model.base.shape == (8 * 12,)
    assert model.sample(2).shape == (2, 1, 7, 10)


def test_classes_change_the_density():
    model = trained_like("glow_conditional")
    images, _ = data(model)
    torch.manual_seed(0)
    one = model.log_prob(images, torch.zeros(4, dtype=torch.long))
    torch.manual_seed(0)
    other = model.log_prob(images, torch.ones(4, dtype=torch.long))
    assert (one - other).abs().min() > 0
    assert model.sample(3, labels=2).shape == (3, 1, 6, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RealNVP(8, 1, scales=9), r"scales=9 does not fit images of 8×8 pixels: use 1 to 3"),
        (lambda: RealNVP(1, 1, scales=1), "use larger images"),
        (lambda: RealNVP(8, 1, scales=0), "use 1 to 3"),
        (lambda: Glow(8, 1, levels=4, steps=1, width=4), "levels=4 does not fit"),
        (lambda: FlowPlusPlus(2, 1), "at least 3×3 pixels"),
        (lambda: FlowPlusPlus(8, 1, width=9, heads=2), "heads=2 does not divide width=9"),
        (lambda: trained_like("glow").log_prob(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "height 8 ≠ 16"),
        (lambda: trained_like("glow").log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "channels 3 ≠ 1"),
        (lambda: trained_like("glow").log_prob(torch.zeros(1, 3, 8, 8)), "uint8"),
        (lambda: trained_like("glow").log_prob(torch.full((1, 3, 8, 8), torch.nan)), "NaN"),
        (lambda: trained_like("glow").sample(2, labels=0), "without classes"),
        (lambda: trained_like("glow_conditional").sample(2, labels=3), "class numbers from 0 to 2"),
        (lambda: trained_like("glow_conditional").sample(2, labels=torch.tensor([0])), "one label for each of 2"),
        (lambda: trained_like("glow_conditional").log_prob(torch.zeros(1, 1, 6, 8, dtype=torch.uint8)), "give a label"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@every_model
def test_cpu_and_cuda_agree(name):
    model = trained_like(name)
    images, labels = data(model)
    expected = model.encode(images, labels)
    moved = model.cuda()
    got = moved.encode(images.cuda(), None if labels is None else labels.cuda())
    torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=1e-3)
    samples = moved.sample(2, generator=torch.Generator().manual_seed(0))
    assert samples.device.type == "cuda"
