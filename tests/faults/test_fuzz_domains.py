"""Random molecules and sound: a result or a reason, never a traceback, a hang or a crash."""

import io
import struct

import h5py
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import strategies as st
from rdkit import Chem

from arflows.audio.inputs import read_mel
from arflows.audio.representation import MelSpec
from arflows.data.audio_files import SkippedAudio, read_audio
from arflows.data.molecule_files import Entry, read_molecules
from arflows.data.speech_sources import read_speech
from arflows.molecules.chemistry import smiles_of
from arflows.molecules.inputs import Example, represent
from tests.faults.fuzzing import REFUSALS, damaged, fuzzed
from tests.faults.hostile import npy_header

# ---------------------------------------------------------------------------------------------------- molecules

SMILES = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "C[C@H](N)C(=O)O",
    "C1CC2CCC1C2",
    "[O-][N+](=O)c1ccc(Cl)cc1",
    "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",
    "F/C=C/Br",
    "[13CH4]",
    "[Na+].[Cl-]",
    "C%10CC%10",
    "OB(O)c1ccccc1",
    "P(=O)(O)(O)O",
    "CS(=O)(=O)C#N",
]
symbols = st.sampled_from(
    [*"CNOPSFIBcnosp", "Cl", "Br", "Si", "[nH]", "[N+]", "[O-]", "[C@@H]", "[2H]", "[Fe+2]", "[*]", "*",
     *"()()=#$:/\\.-+[]@%1122334", "%11", ">", " ", "\t", "é", "\x00"]
)  # fmt: skip


@fuzzed(
    st.one_of(
        st.lists(symbols, max_size=40).map("".join),
        damaged([text.encode() for text in SMILES]).map(lambda content: content.decode("latin-1")),
        st.text(max_size=40),
        st.tuples(st.sampled_from(SMILES), st.integers(1, 1500)).map(lambda both: both[0] * both[1]),
    )
)
def test_smiles(folder, text):
    """A molecule that reads back as it was, or the reason why it has no graph."""
    (found,) = represent([Entry(1, text)], "smiles", "dfs", 100, True)
    if isinstance(found, Example):
        assert smiles_of(found.graph) == found.smiles
    else:
        assert found


BLOCKS = [Chem.MolToMolBlock(Chem.MolFromSmiles(text)).encode() for text in SMILES]
BLOCKS += [Chem.MolToV3KMolBlock(Chem.MolFromSmiles(SMILES[0])).encode()]


@fuzzed(damaged(BLOCKS))
def test_mol_blocks(folder, content):
    """The same of the form of SD files."""
    (found,) = represent([Entry(1, content.decode("latin-1"))], "mol block", "bfs", 100, False)
    if isinstance(found, Example):
        assert smiles_of(found.graph) == found.smiles
    else:
        assert found


@pytest.mark.report
@fuzzed(
    st.one_of(st.binary(max_size=200), damaged(["\n".join(["smiles,logP", *SMILES]).encode(), b"\n".join(BLOCKS[:2])])),
    st.sampled_from(["a.smi", "a.csv", "a.tsv", "a.sdf", "a.smi.gz", "a.sdf.gz"]),
    st.sampled_from([None, "smiles"]),
)
def test_files_of_molecules(folder, content, name, column):
    """Entries, or one sentence that names the file."""
    path = folder / name
    path.write_bytes(content)
    try:
        list(read_molecules(path, column))
    except REFUSALS as error:
        assert str(path) in str(error)
    path.unlink()


# -------------------------------------------------------------------------------------------------------- sound


def sound(kind, subtype, channels=1):
    stream = io.BytesIO()
    samples = np.sin(np.arange(900 * channels) / 7).reshape(-1, channels) / 2
    soundfile.write(stream, samples, 16_000, format=kind, subtype=subtype)
    return stream.getvalue()


SOUNDS = [
    sound(kind, subtype, channels)
    for kind, subtype, channels in (
        ("WAV", "PCM_16", 1), ("WAV", "FLOAT", 2), ("WAV", "ULAW", 1), ("WAV", "IMA_ADPCM", 1), ("WAVEX", "PCM_24", 6),
        ("FLAC", "PCM_16", 2), ("OGG", "VORBIS", 1), ("AIFF", "PCM_24", 1), ("AU", "DOUBLE", 1), ("CAF", "ALAC_16", 1),
        ("W64", "PCM_16", 1), ("MP3", "MPEG_LAYER_III", 1), ("RF64", "PCM_16", 1))
]  # fmt: skip
whole = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 16, 24, 255, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFF00, 0xFFFFFFFF]),
    st.integers(0, 2**32 - 1),
)


@st.composite
def wav(draw):
    """A WAV file of which the header tells anything."""
    tag, channels, bits, align = (draw(whole) & 0xFFFF for _ in range(4))
    if draw(st.booleans()):
        tag, bits = draw(
            st.sampled_from([(1, 8), (1, 16), (1, 24), (3, 32), (3, 64), (6, 8), (7, 8), (17, 4), (0xFFFE, 16)])
        )
    rate, per_second, size, total = (draw(whole) for _ in range(4))
    form = struct.pack("<HHIIHH", tag, channels, rate, per_second, align, bits) + draw(st.binary(max_size=40))
    more = b"".join(
        name + struct.pack("<I", draw(whole)) + draw(st.binary(max_size=20))
        for name in draw(st.lists(st.sampled_from([b"LIST", b"fact", b"cue ", b"junk", b"fmt "]), max_size=2))
    )
    told = draw(st.sampled_from([len(form), 16, 18, 40])) if draw(st.booleans()) else draw(whole)
    content = draw(st.binary(max_size=400))
    return (
        b"RIFF" + struct.pack("<I", total) + b"WAVEfmt " + struct.pack("<I", told) + form + more
        + b"data" + struct.pack("<I", draw(st.sampled_from([len(content), size]))) + content
    )  # fmt: skip


@fuzzed(st.one_of(wav(), damaged(SOUNDS), st.binary(max_size=200)), st.sampled_from([8_000, 22_050]))
def test_audio_headers(folder, content, rate):
    """A recording in [-1, 1], or a few words on why there is none."""
    path = folder / "a.wav"
    path.write_bytes(content)
    try:
        clip = read_audio(path, rate, shortest=10)
    except SkippedAudio as reason:
        assert str(reason)
    else:
        assert len(clip.samples) >= 10
        assert np.abs(clip.samples).max() <= 1
        assert clip.samples.dtype == np.float32


@fuzzed(st.one_of(st.binary(max_size=200), st.text("a|\n/.\\\"'é\x00", max_size=60).map(str.encode),
                  damaged([b"id|text|split\na|one|train\nb|two|val\n"])))  # fmt: skip
def test_tables_of_speech(folder, content):
    """A metadata.csv names recordings, or is refused in one sentence."""
    (folder / "metadata.csv").write_bytes(content)
    try:
        source = read_speech(folder)
    except REFUSALS as error:
        assert str(folder) in str(error)
        return
    for utterance in source.utterances:
        with pytest.raises(SkippedAudio):
            utterance.read(16_000)


def mel_contents():
    mel = np.zeros((80, 3), np.float32)
    streams = [io.BytesIO() for _ in range(3)]
    np.save(streams[0], mel)
    torch.save(torch.from_numpy(mel), streams[1])
    with h5py.File(streams[2], "w") as file:
        file["mel"] = mel
        file.attrs["hop"] = 256
    return [stream.getvalue() for stream in streams]


@pytest.mark.report
@fuzzed(
    st.one_of(damaged(mel_contents()), st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)).map(npy_header)),
    st.sampled_from(["a.npy", "a.pt", "a.h5"]),
)
def test_mel_files(folder, content, name):
    """A mel spectrogram of the model's bands, or one sentence that names the file."""
    path = folder / name
    path.write_bytes(content)
    try:
        mel = read_mel(path, MelSpec())
    except REFUSALS as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert mel.shape[:2] == (1, 80)
    path.unlink()
