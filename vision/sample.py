"""Draw images with a trained flow, or interpolate and reconstruct given ones: ``arflows vision sample``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor
from tqdm import tqdm

from arflows.core.inversion import SOLVERS, SolverName, use_solver
from arflows.core.likelihood import Estimate, dequantization
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import new_folder
from arflows.core.runtime.noise import PerExample, fixed_noise, seed_of, torch_generator
from arflows.core.runtime.option_types import NonNegativeFloat, PositiveInt
from arflows.core.runtime.pretrained import load_model, training_facts
from arflows.core.runtime.processes import distributed_map
from arflows.vision.inputs import ImageInput, read_image
from arflows.vision.model import ImageFlow, TarFlow
from arflows.vision.render import grid, save_png


def sample(
    model: str,
    out: Path,
    count: PositiveInt = 64,
    temperature: NonNegativeFloat = 1.0,
    label: str | None = None,
    seed: int = 0,
    interpolate_from: Path | None = None,
    interpolate_to: Path | None = None,
    reconstruct: Path | None = None,
    guidance: NonNegativeFloat = 0.0,
    denoise: bool = False,
    solver: SolverName = "sequential",
    batch_size: PositiveInt = 64,
    device: str = "auto",
) -> None:
    """Draw images with a trained flow; or interpolate between two images; or reconstruct images.

    Writes a folder: grid.png with all images, images/0000.png, …, and samples.npz with the arrays images (uint8, or
    int32 for pixels of more than 8 bits; count × channels × height × width), log_probs (nats of the discrete image, a
    lower bound; of a TarFlow trained with noise, log-densities of noisy images), seed, temperature and, of a
    class-conditional model, labels. The same seed gives the same images on every device, up to rounding, and in any
    number of processes.

    Interpolation runs through latent space, along the sphere around the base density's mean (as Dinh et al. 2017,
    section 4.2): a straight line would leave the shell where nearly all of the density's mass lies. Reconstruction
    encodes images and decodes their latents; in the grid each original has its reconstruction to its right.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        out: Folder to write; it must not hold anything yet.
        count: How many images; of an interpolation both ends count; of images to reconstruct, how many at most.
        temperature: Multiplies the standard deviation of the latents; below 1 for images nearer to the mode.
        label: The name of the class, for a class-conditional model; without it, samples are of all classes, in the
            proportions of the training data.
        seed: Seed of the latents.
        interpolate_from: First image of an interpolation.
        interpolate_to: Last image of an interpolation.
        reconstruct: Images to reconstruct: an image file, a folder, an .npz file or a store's test split. Image files
            of another size than the model's are cropped and reduced.
        guidance: Of a class-conditional TarFlow, how much clearer the class of each sample is to be: weight of
            classifier-free guidance, say 1. Guided samples no longer follow the model's density.
        denoise: Of a TarFlow trained with noise, take the noise out of the samples.
        solver: How models with autoregressive parts are inverted; all solvers give the same images.
        batch_size: Images computed at a time.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.
    """
    if (interpolate_from is None) != (interpolate_to is None):
        raise UserError("an interpolation has two ends: give both --interpolate_from and --interpolate_to.")
    if interpolate_from is not None and reconstruct is not None:
        raise UserError("give either --interpolate_from and --interpolate_to, or --reconstruct, not both.")
    options = {name: value for name, value in {"guidance": guidance, "denoise": denoise}.items() if value}
    if options and (interpolate_from is not None or reconstruct is not None):
        raise UserError(f"--reconstruct and --interpolate_from draw no images: leave out --{' and --'.join(options)}.")
    with new_folder(out) as folder, use_solver(SOLVERS[solver]()):
        flow = load_model(ImageFlow, model, device)
        if options and not isinstance(flow, TarFlow):
            raise UserError(f"--{' and --'.join(options)} are for a TarFlow, {model} is a {type(flow).__name__}.")
        number = None if label is None else flow.class_number(label)
        if interpolate_from is not None and interpolate_to is not None:
            first, last = read_image(interpolate_from, flow.spec), read_image(interpolate_to, flow.spec)
            images = interpolate(flow, first, last, count, number, batch_size)
            save_png(grid(images, min(count, 10), flow.spec.bits), folder / "grid.png")
            _save_images(folder, images, flow.spec.bits)
        elif reconstruct is not None:
            given = ImageInput(reconstruct, flow, label=label, convert=True)
            _reconstruct(flow, given, reconstruct, folder, count, batch_size)
        else:
            labels = draw_classes(model, flow, count, seed) if number is None and flow.classes else number
            _draw(flow, folder, count, temperature, labels, seed, batch_size, **options)
    print(f"{out}: {sum(1 for _ in (out / 'images').iterdir())} images; see {out / 'grid.png'}.")


def draw_classes(model: str, flow: ImageFlow, count: int, seed: int) -> Int64[Tensor, " count"] | None:
    """Draw class numbers in the proportions of the training data.

    Args:
        model: Folder of the model or its run, whose ``training.json`` has the number of images of each class.
        flow: The model.
        count: Number of classes to draw.
        seed: Seed of the draw.

    Returns:
        The numbers; None where the proportions are not known.
    """
    counts = (training_facts(model) or {"data": {}})["data"].get("class_counts")
    if not counts:
        return None
    weights = [counts.get(name, 0) for name in flow.class_names or counts]
    generator = torch_generator(seed, "labels")
    return torch.multinomial(torch.tensor(weights, dtype=torch.float64), count, True, generator=generator)


def draw(
    flow: ImageFlow,
    count: int,
    temperature: float,
    label: Tensor | int | None,
    seed: int,
    batch_size: int,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Samples images a batch at a time, with a progress bar.

    Args:
        flow: The flow.
        count: How many.
        temperature: Multiplies the standard deviation of the latents.
        label: The class, or that of each image; None for all classes evenly.
        seed: Seed of classes, latents, and the dequantisation noise of the log-probabilities.
        batch_size: Images at a time.
        **options: More arguments of the flow's own ``sample_with_log_prob``.

    Returns:
        ``images`` (count, channels, height, width) uint8, ``log_probs`` (count,) in nats and, of a class-conditional
        model, ``labels`` (count,).
    """
    labels = flow.labels_for(count, label, torch_generator(seed, "labels"))

    def draw_batch(index: int, start: int) -> tuple[Tensor, Tensor]:
        size = min(batch_size, count - start)
        chosen = None if labels is None else labels[start : start + size]
        generator = PerExample(seed, start)
        with fixed_noise(seed_of(seed, "log_prob", index), flow.device):
            batch, log_prob = flow.sample_with_log_prob(
                size, chosen, temperature=temperature, generator=generator, **options
            )
        return batch.cpu(), log_prob.cpu()

    images, log_probs = [], []
    with tqdm(total=count, desc="sampling", disable=None) as progress:
        for batch, log_prob in distributed_map(range(0, count, batch_size), draw_batch):
            images.append(batch)
            log_probs.append(log_prob)
            progress.update(len(batch))
    arrays = {"images": torch.cat(images).numpy(), "log_probs": torch.cat(log_probs).numpy()}
    return arrays if labels is None else {**arrays, "labels": labels.cpu().numpy()}


@torch.no_grad()
def interpolate(
    flow: ImageFlow,
    first: Integer[Tensor, "channels height width"],
    last: Integer[Tensor, "channels height width"],
    count: int,
    label: int | None = None,
    batch_size: int = 64,
) -> Integer[Tensor, "count channels height width"]:
    """Walks from one image to another through latent space, along the sphere around the base density's mean.

    Args:
        flow: The flow.
        first: Where to start; the first image returned is it, up to rounding.
        last: Where to end.
        count: How many images, both ends included.
        label: The class of all of them, for a class-conditional model.
        batch_size: Images decoded at a time.

    Raises:
        UserError: If there are fewer than two, or a class is missing or superfluous.
    """
    if count < 2:
        raise UserError(f"count is {count}: an interpolation has at least two images.")
    if flow.classes and label is None:
        raise UserError(f"this model is conditional on {flow.classes} classes: give --label.")
    ends = torch.stack([first, last]).to(flow.device)
    z = flow.encode(ends, flow.labels_for(2, label))
    labels = flow.labels_for(2, label)
    context = None if labels is None or flow.context_encoder is None else flow.context_encoder(labels)
    mean = flow.base.sample(2, context, temperature=0.0)
    path = mean[:1] + spherical(z[0] - mean[0], z[1] - mean[0], count)
    return torch.cat([flow.decode(part, flow.labels_for(len(part), label)).cpu() for part in path.split(batch_size)])


def spherical(first: Float[Tensor, " dims"], last: Float[Tensor, " dims"], count: int) -> Float[Tensor, "count dims"]:
    """Points evenly spaced in angle from one vector to another, whose lengths change evenly (Shoemake 1985).

    Vectors (almost) parallel are joined by a straight line.
    """
    t = torch.linspace(0, 1, count, device=first.device, dtype=first.dtype)[:, None]
    cosine = torch.nn.functional.cosine_similarity(first, last, dim=0).clamp(-1, 1)
    angle = cosine.arccos()
    if angle.sin() < 1e-4:
        return torch.lerp(first, last, t)
    lengths = torch.lerp(first.norm(), last.norm(), t)
    directions = ((1 - t) * angle).sin() * first / first.norm() + (t * angle).sin() * last / last.norm()
    return lengths * directions / angle.sin()


def _draw(
    flow: ImageFlow,
    folder: Path,
    count: int,
    temperature: float,
    label: Tensor | int | None,
    seed: int,
    batch_size: int,
    **options: Any,
) -> None:
    arrays = draw(flow, count, temperature, label, seed, batch_size, **options)
    images = torch.from_numpy(arrays.pop("images"))
    save_png(grid(images, bits=flow.spec.bits), folder / "grid.png")
    _save_images(folder, images, flow.spec.bits, **arrays, **options, seed=seed, temperature=temperature)
    figure = Estimate.of(torch.from_numpy(arrays["log_probs"]), flow.dims, flow.likelihood, dequantization(flow))
    print(f"samples at temperature {temperature:g}, seed {seed}: {figure}")


def _reconstruct(flow: ImageFlow, given: ImageInput, source: Path, folder: Path, count: int, batch_size: int) -> None:
    device = flow.device
    originals, decoded, errors = [], [], []
    for batch in given.batches(batch_size, limit=count):
        x = batch["x"].to(device)
        context = batch["context"].to(device) if "context" in batch else None
        with torch.no_grad():
            decoded.append(flow.decode(flow.encode(x, context), context).cpu())
        originals.append(batch["x"])
        errors.append(flow.round_trip_error(x, context).cpu())
    if not originals:
        raise UserError(f"{source} holds no image that can be used: {given.summary()}.")
    before, after, error = torch.cat(originals), torch.cat(decoded), torch.cat(errors)
    pairs = torch.stack([before, after], 1).flatten(0, 1)
    save_png(grid(pairs, 2 * min(len(before), 5), flow.spec.bits), folder / "grid.png")
    _save_images(folder, after, flow.spec.bits, originals=before.numpy(), errors=error.numpy())
    exact = int((before == after).flatten(1).all(1).sum())
    print(
        f"{exact} of {len(before)} images come back exactly; the largest error of a pixel is {error.max():.2g} "
        f"of its range (pixels come back exactly below {0.5 / flow.spec.levels:.2g})"
    )
    if given.skipped:
        print(f"skipped: {given.summary()}")


def _save_images(
    folder: Path, images: Integer[Tensor, "count channels height width"], bits: int, **arrays: Any
) -> None:
    (folder / "images").mkdir()
    for index, image in enumerate(tqdm(images, "writing", disable=None, leave=False)):
        save_png(image, folder / "images" / f"{index:04d}.png", bits)
    np.savez_compressed(folder / "samples.npz", **{"images": images.cpu().numpy(), **arrays})
