"""Measurements of the golden models in tests/golden/models_v1."""

import torch
from torch import Tensor

from arflows.audio.model import PredictiveFlow, WaveFlow
from arflows.core.flows import VectorFlow
from arflows.molecules.model import MoleculeFlow
from arflows.vision import ImageFlow

KINDS = {
    "flowpp": ImageFlow,
    "glow": ImageFlow,
    "maf": VectorFlow,
    "molecules": MoleculeFlow,
    "nsf": VectorFlow,
    "nsfc": VectorFlow,
    "predictive": PredictiveFlow,
    "realnvp": ImageFlow,
    "tarflow": ImageFlow,
    "waveflow": WaveFlow,
}


@torch.no_grad()
def measure(flow: VectorFlow | ImageFlow | WaveFlow | PredictiveFlow | MoleculeFlow) -> Tensor:
    """Latents of two fixed images, log-densities of fixed vectors, samples or molecules; flattened."""
    if isinstance(flow, ImageFlow):
        images = (torch.arange(32).reshape(2, 1, 4, 4) * 37 % 256).to(torch.uint8)
        return flow.encode(images, torch.tensor([0, 1]) if flow.classes else None).flatten()
    if isinstance(flow, WaveFlow):
        waveform, mel = torch.linspace(-0.5, 0.5, 40).reshape(2, 20), torch.linspace(-3, 1, 16).reshape(2, 4, 2)
        return flow.log_prob_per_sample(waveform, mel=mel, speaker=torch.tensor([0, 1])).flatten()
    if isinstance(flow, PredictiveFlow):
        waveform, mel = torch.linspace(-0.5, 0.5, 160).sin().reshape(2, 80), torch.linspace(-6, 1, 60).reshape(2, 10, 3)
        return flow.log_prob_per_sample(waveform, mel=mel, speaker=torch.tensor([0, 1])).flatten()
    if isinstance(flow, MoleculeFlow):
        return flow.log_prob(["CO", "CCO", "C"])
    x = torch.linspace(-2, 2, 4 * flow.dims).reshape(4, -1)
    return flow.log_prob(x, torch.linspace(-1, 1, 4)[:, None] if flow.context_features else None)
