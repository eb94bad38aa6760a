"""The contract of `arflows.core.flow.Flow`, for every public flow of every domain."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from arflows import audio, molecules, vision
from arflows.core import flows
from arflows.core.flow import BijectiveFlow, Flow, evaluating
from arflows.core.likelihood import log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained
from arflows.molecules.chemistry import graph_of
from arflows.molecules.decisions import packed
from arflows.molecules.graph_flow import GraphFlow

from .molecules.small_flows import DRUGS

COUNT = 3
INTERFACES = {BijectiveFlow, flows.VectorFlow, vision.ImageFlow, audio.SpeechFlow, GraphFlow}
"""Classes that others complete; they are tested as parts of these."""


class Case(NamedTuple):
    """A small flow and data for it.

    Attributes:
        build: constructs the flow.
        batch: fields of a batch of `COUNT` examples, as a datamodule yields them.
        sampling: further arguments of `sample`.
        spread: standard deviation of the noise on the parameters.
    """

    build: Callable[[], Pretrained]
    batch: Callable[[], dict[str, Tensor]]
    sampling: Mapping[str, Any] = MappingProxyType({})
    spread: float = 0.05


def vectors(name: str, context: int = 0, **options: Any) -> Case:
    def batch() -> dict[str, Tensor]:
        given = {"context": torch.randn(COUNT, context)} if context else {}
        return {"x": torch.randn(COUNT, 3), **given}

    return Case(lambda: getattr(flows, name)(3, context=context, hidden_features=(8,), **options), batch)


def images(name: str, size: int = 8, classes: int = 0, **options: Any) -> Case:
    def batch() -> dict[str, Tensor]:
        given = {"context": torch.arange(COUNT) % classes} if classes else {}
        return {"x": torch.randint(256, (COUNT, 1, size, size), dtype=torch.uint8), **given}

    return Case(lambda: getattr(vision, name)(size, 1, **({"classes": classes} if classes else {}), **options), batch)


def speech(name: str, conditional: bool = True, speakers: int = 0, **options: Any) -> Case:
    spec = {"n_fft": 32, "hop": 16, "window": 32, "bands": 5}

    def batch() -> dict[str, Tensor]:
        mel = {"mel": (3 * torch.randn(COUNT, 5, 5) - 6).clamp(-11.5, 3.4)} if conditional else {}
        return {"x": 0.1 * torch.randn(COUNT, 80), **mel, **({"speaker": torch.arange(COUNT)} if speakers else {})}

    build = lambda: getattr(audio, name)(spec, conditional, speakers, channels=4, **options)  # noqa: E731
    # Rounding errors grow from sample to sample in a random network that is autoregressive over samples.
    spread = 0.002 if name == "PredictiveFlow" else 0.05
    return Case(build, batch, {} if conditional else {"samples": 80}, spread)


def graphs(name: str, order: str, **options: Any) -> Case:
    spec = replace(DRUGS, order=order, look_back=6 if order == "bfs" else DRUGS.look_back)
    properties = len(options.get("properties", []))

    def batch() -> dict[str, Tensor]:
        x = packed([graph_of(smiles, spec.order) for smiles in ("CCO", "N#CC1CC1", "O")], spec)
        return {"x": x, **({"context": torch.randn(COUNT, properties)} if properties else {})}

    return Case(lambda: getattr(molecules, name)(spec.as_dict(), **options), batch)


WAVEFLOW = {"height": 8, "layers": 2, "flows": 2}
PREDICTIVE = {"order": 4, "chunk": 4, "dilations": (1, 2), "width": 4, "features": 4}
TRANSFORMER = {"width": 16, "layers": 2, "heads": 2}
CASES = {
    "MADE": vectors("MADE"),
    "MADEMoG": vectors("MADEMoG"),
    "MAF": vectors("MAF", transforms=2),
    "MAF-context": vectors("MAF", 2, transforms=2, batch_norm=True),
    "MAFMoG": vectors("MAFMoG", transforms=2),
    "IAF": vectors("IAF", transforms=2),
    "NSF": vectors("NSF", transforms=2),
    "RealNVP": vectors("RealNVP", transforms=2),
    "NSFC": vectors("NSFC", transforms=2),
    "vision.MADE": images("MADE", hidden_features=(16,)),
    "vision.MAF": images("MAF", classes=2, transforms=2, hidden_features=(16,)),
    "vision.RealNVP": images("RealNVP", scales=2, blocks=1, width=4),
    "vision.RealNVP-classes": images("RealNVP", classes=3, scales=2, blocks=1, width=4),
    "vision.Glow": images("Glow", levels=2, steps=1, width=4),
    "vision.FlowPlusPlus": images("FlowPlusPlus", blocks=1, width=4, components=2, heads=2),
    "vision.TarFlow": images("TarFlow", patch_size=4, blocks=2, **TRANSFORMER),
    "vision.TarFlow-noise": images("TarFlow", classes=2, patch_size=4, blocks=2, noise=0.1, **TRANSFORMER),
    "audio.WaveFlow": speech("WaveFlow", **WAVEFLOW),
    "audio.WaveFlow-free": speech("WaveFlow", conditional=False, **WAVEFLOW),
    "audio.WaveFlow-speakers": speech("WaveFlow", speakers=3, causal_width=True, **WAVEFLOW),
    "audio.PredictiveFlow": speech("PredictiveFlow", **PREDICTIVE),
    "audio.PredictiveFlow-free": speech("PredictiveFlow", conditional=False, **PREDICTIVE),
    "audio.PredictiveFlow-speakers": speech("PredictiveFlow", speakers=3, density="normal", **PREDICTIVE),
    "molecules.MoleculeFlow": graphs("MoleculeFlow", "dfs", **TRANSFORMER),
    "molecules.MoleculeFlow-properties": graphs("MoleculeFlow", "dfs", properties=["logP", "QED"], **TRANSFORMER),
    "molecules.GraphAF": graphs("GraphAF", "bfs", width=8, layers=2, look_back=6),
}
every_flow = pytest.mark.parametrize("name", CASES)


def make(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A flow with noise on its parameters, in evaluation mode, and a batch."""
    torch.manual_seed(0)
    flow = CASES[name].build().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(CASES[name].spread * torch.randn_like(parameter))
    return flow, CASES[name].batch()


def called(method: Callable[..., Any], batch: dict[str, Tensor], **options: Any) -> Any:
    """The method's result for a batch, with the same noise every time."""
    torch.manual_seed(1)
    others = {key: field for key, field in batch.items() if key not in ("x", "context")}
    return method(*(batch[key] for key in ("x", "context") if key in batch), **others, **options)


def drawn(method: Callable[..., Any], name: str, batch: dict[str, Tensor]) -> Any:
    """The result of `sample` or `sample_with_log_prob`, given the conditions of a batch."""
    generator = torch.Generator().manual_seed(2)
    return called(method, {**batch, "x": COUNT}, generator=generator, **CASES[name].sampling)


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_no_public_flow_is_left_out():
    for package in ("core.flows", "vision", "audio", "molecules"):
        module = importlib.import_module(f"arflows.{package}")
        for name in getattr(module, "__all__", []):
            getattr(module, name)
    found = {kind for kind in subclasses(Flow) if kind.__module__.startswith("arflows.")}
    public = {kind for kind in found if not kind.__name__.startswith("_")} - INTERFACES
    assert {type(case.build()) for case in CASES.values()} == public


@every_flow
def test_likelihood(name):
    flow, batch = make(name)
    log_prob = called(flow.log_prob, batch)
    assert log_prob.shape == (COUNT,)
    assert log_prob.dtype == flow.dtype == torch.float32
    assert log_prob.device == flow.device == torch.device("cpu")
    assert log_prob.isfinite().all()
    assert torch.equal(called(flow, batch), log_prob)
    assert flow.likelihood in ("exact", "density", "bound")
    assert flow.dims is None or flow.dims == batch["x"][0].numel()
    assert flow.double().dtype == torch.float64
    wide = {key: field.double() if field.is_floating_point() else field for key, field in batch.items()}
    assert called(flow.log_prob, wide).isfinite().all()


@every_flow
def test_initialize_leaves_a_finite_likelihood(name):
    torch.manual_seed(0)
    flow, batch = CASES[name].build(), CASES[name].batch()
    called(flow.initialize, batch)
    assert called(flow.eval().log_prob, batch).isfinite().all()


@every_flow
def test_figures_are_made_of_its_batches(name):
    flow, batch = make(name)
    figures = log_probs(flow, [batch, {key: field[:2] for key, field in batch.items()}])
    assert figures.shape == (COUNT + 2,)
    assert figures.dtype == torch.float64
    assert figures.isfinite().all()


@every_flow
def test_samples_are_examples(name):
    flow, batch = make(name)
    samples = drawn(flow.sample, name, batch)
    assert len(samples) == COUNT
    if isinstance(samples, Tensor):
        assert samples.shape == batch["x"].shape
        assert samples.dtype == batch["x"].dtype
        assert not samples.requires_grad
    assert called(flow.log_prob, {**batch, "x": samples}).shape == (COUNT,)


@every_flow
def test_samples_come_with_their_log_prob(name):
    flow, batch = make(name)
    if not flow.scores_samples:
        with pytest.raises(UserError, match=r"no sample_with_log_prob: check flow\.scores_samples"):
            drawn(flow.sample_with_log_prob, name, batch)
        return
    samples, log_prob = drawn(flow.sample_with_log_prob, name, batch)
    assert log_prob.shape == (COUNT,)
    assert log_prob.dtype == flow.dtype
    assert not log_prob.requires_grad
    expected = called(flow.log_prob, {**batch, "x": samples}).detach()
    torch.testing.assert_close(log_prob, expected, atol=2e-3, rtol=1e-4)
    alone = drawn(flow.sample, name, batch)
    assert torch.equal(alone, samples) if isinstance(samples, Tensor) else alone == samples


@every_flow
def test_latents_give_back_the_examples(name):
    flow, batch = make(name)
    if not flow.has_latents:
        for method in (flow.encode, flow.decode, flow.round_trip_error):
            with pytest.raises(UserError, match=r"check flow\.has_latents"):
                called(method, batch)
        return
    z = called(flow.encode, batch)
    assert len(z) == COUNT
    assert len(called(flow.decode, {**batch, "x": z})) == COUNT
    error = called(flow.round_trip_error, batch)
    assert error.shape == (COUNT,)
    assert error.max() < 1e-3  # of pixels of [0, 1]: half a cell is 2e-3
    other = {**batch, "x": batch["x"].flip(0)}
    assert not torch.equal(called(flow.encode, other), z)


@every_flow
def test_files_keep_it(name, tmp_path):
    flow, batch = make(name)
    flow.save_pretrained(tmp_path)
    loaded = type(flow).from_pretrained(tmp_path)
    assert type(loaded) is type(flow)
    assert not loaded.training
    assert torch.equal(called(loaded.log_prob, batch), called(flow.log_prob, batch))


@pytest.mark.report
@every_flow
@pytest.mark.parametrize("frozen", ["none", "some"])
def test_modes_and_state_are_left_as_they_were(name, frozen):
    """In training, with some parts frozen: no call but a training step changes a mode or a running statistic."""
    flow, batch = make(name)
    flow.train()
    if frozen == "some":
        for number, part in enumerate(flow.modules()):
            if number % 3 == 1:
                part.training = False
    modes = [part.training for part in flow.modules()]
    state = {key: value.clone() for key, value in flow.state_dict().items()}

    def check():
        assert [part.training for part in flow.modules()] == modes
        for key, value in flow.state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)

    drawn(flow.sample, name, batch)
    check()
    log_probs(flow, [batch])
    check()
    if flow.scores_samples:
        drawn(flow.sample_with_log_prob, name, batch)
        check()
    if flow.has_latents:
        z = called(flow.encode, batch)
        called(flow.decode, {**batch, "x": z})
        called(flow.round_trip_error, batch)
        check()


@pytest.mark.report
def test_modes_are_restored_after_an_error():
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    module[1].eval()

    def fail():
        assert not any(part.training for part in module.modules())
        raise KeyError

    with pytest.raises(KeyError), evaluating(module):
        fail()
    assert [part.training for part in module.modules()] == [True, True, False]


@pytest.mark.report
def test_modes_of_a_flow_in_evaluation_are_not_set(monkeypatch):
    """So that threads that share a flow do not see each other."""
    flow = CASES["MAF"].build().eval()
    monkeypatch.setattr(nn.Module, "train", lambda *_: pytest.fail("the mode was set"))
    flow.sample(2)
    log_probs(flow, [{"x": torch.randn(2, 3)}])
