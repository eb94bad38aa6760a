"""Preparation of recordings, and reasons for refusing them."""

import numpy as np
import pytest
import soundfile
import torch

from arflows.audio import prepare as module
from arflows.audio.prepare import prepare
from arflows.audio.representation import MelSpec, log_mel
from arflows.core.runtime.errors import UserError
from arflows.data.audio_files import from_int16
from arflows.data.store import Store
from tests.launch import command

RATE = 22_050


def voice(seconds=0.3, rate=RATE, seed=0, level=0.3):
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 250)
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
    return level * (0.5 * buzz + 0.02 * rng.standard_normal(len(time)))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "speech"
    folder.mkdir()
    for index in range(6):
        soundfile.write(folder / f"{index}.wav", voice(seed=index), RATE)
    return folder


def test_builtin_speech(speech):
    store = Store(speech, expect_domain="audio")
    store.verify()
    assert store.splits == {"train": 24, "val": 24, "test": 24}
    assert store.categories["speakers"] == ["ada", "ben", "cleo", "dan", "eve"]
    assert store.provenance["shared with train"] == {}
    assert store.provenance["available"] == {"train": 192, "val": 24, "test": 24}
    spec = MelSpec.from_dict(store.spec)
    waveforms, mels = store.ragged("test", "waveforms"), store.ragged("test", "mels")
    assert waveforms.values.dtype == np.int16
    assert mels.values.dtype == np.float16
    np.testing.assert_array_equal(waveforms.lengths, mels.lengths * spec.hop)
    for index in (0, 7):
        mel = log_mel(torch.from_numpy(from_int16(waveforms[index]))[None], spec)[0].T
        np.testing.assert_allclose(mels[index].astype(np.float32), mel, atol=0.004)
    assert len(store.provenance["names"]["train"]) == 24


def test_all_that_can_go_wrong_in_one_folder(folder, tmp_path, capsys):
    soundfile.write(folder / "a_stereo.wav", np.stack([voice(seed=9)] * 2, 1), RATE)
    soundfile.write(folder / "b_surround.wav", np.stack([voice(seed=8)] * 6, 1), RATE)
    soundfile.write(folder / "c_rate.flac", voice(rate=48_000), 48_000)
    soundfile.write(folder / "d_8bit.wav", voice(seed=3), RATE, subtype="PCM_U8")
    soundfile.write(folder / "e_24bit.wav", voice(seed=4), RATE, subtype="PCM_24")
    loud = voice(seed=5)
    soundfile.write(folder / "f_loud.wav", 1.4 * loud / np.abs(loud).max(), RATE, subtype="FLOAT")
    soundfile.write(folder / "g_clipped.wav", np.clip(9 * voice(seed=6), -1, 1), RATE)
    soundfile.write(folder / "h_empty.wav", np.zeros(0), RATE)
    soundfile.write(folder / "i_short.wav", voice(0.02), RATE)
    soundfile.write(folder / "j_silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "k_dc.wav", np.full(RATE, 0.3), RATE)
    nan = voice()
    nan[5] = np.nan
    soundfile.write(folder / "l_nan.wav", nan, RATE, subtype="FLOAT")
    soundfile.write(folder / "m_truncated.wav", voice(), RATE)
    content = (folder / "m_truncated.wav").read_bytes()
    (folder / "m_truncated.wav").write_bytes(content[: len(content) // 2])
    (folder / "n_text.wav").write_text("no audio at all " * 99)
    (folder / "o_nothing.wav").touch()
    out = tmp_path / "s.h5"
    prepare(str(folder), out, val_fraction=0, test_fraction=0)
    store = Store(out)
    assert store.splits == {"train": 13}
    told = capsys.readouterr().out
    stats = store.provenance["splits"]["train"]
    skipped = {name: reason for reason, names in stats["skipped"].items() for name in names}
    for name, reason in {
        "h_empty.wav": "empty",
        "i_short.wav": "shorter than 1280 samples",
        "j_silent.wav": "silent",
        "k_dc.wav": "of one constant value",
        "l_nan.wav": "with NaN or infinite samples",
        "m_truncated.wav": "truncated",
        "n_text.wav": "no audio",
        "o_nothing.wav": "empty",
    }.items():
        assert skipped.pop(name) == reason
        assert name in told
    assert not skipped
    for remark in (
        "mixed down from 2 channels",
        "mixed down from 6 channels",
        "resampled from 48,000 Hz",
        "from 8 bits",
        "from 24 bits",
        "scaled down from peaks above 1",
        "clipped in places, kept as it is",
    ):
        assert stats["converted"][remark] >= 1
        assert f"of them {remark}" in told


def test_several_processes_do_the_same(folder, tmp_path):
    for workers in (1, 2):
        prepare(str(folder), tmp_path / f"{workers}.h5", workers=workers, val_fraction=0.2, test_fraction=0.2)
    one, two = Store(tmp_path / "1.h5"), Store(tmp_path / "2.h5")
    assert one.splits == two.splits == {"train": 4, "val": 1, "test": 1}
    for name in ("waveforms", "mels"):
        np.testing.assert_array_equal(one.array("train", name), two.array("train", name))


def test_other_settings_and_float32(folder, tmp_path):
    mel = MelSpec(sample_rate=16_000, n_fft=512, window=400, hop=160, bands=40, padding="centre")
    prepare(str(folder), tmp_path / "s.h5", mel=mel, mels="float32")
    store = Store(tmp_path / "s.h5")
    assert MelSpec.from_dict(store.spec) == mel
    waveforms, mels = store.ragged("train", "waveforms"), store.ragged("train", "mels")
    assert mels.values.shape[1] == 40
    expected = log_mel(torch.from_numpy(from_int16(waveforms[0]))[None], mel)[0].T
    np.testing.assert_allclose(mels[0], expected, atol=1e-6)


def test_speakers_apart(tmp_path):
    for who in ("ann", "bob", "cid", "dee"):
        (tmp_path / "speech" / who).mkdir(parents=True)
        for index in range(3):
            soundfile.write(tmp_path / "speech" / who / f"{index}.wav", voice(seed=index), RATE)
    prepare(str(tmp_path / "speech"), tmp_path / "s.h5", split_by="speaker", val_fraction=0.25, test_fraction=0.25)
    store = Store(tmp_path / "s.h5")
    assert store.splits == {"train": 6, "val": 3, "test": 3}
    numbers = {split: set(store.array(split, "speakers").tolist()) for split in store.splits}
    assert numbers["train"] == {0, 1}
    assert not numbers["val"] & numbers["test"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source": "no/such"}, "there is no source 'no/such'"),
        ({"mels": "float64"}, "--mels takes 'float16' or 'float32', not 'float64'"),
        ({"val_fraction": 1.0}, "--val_fraction takes a number from 0 up to, not including, 1, not '1.0'"),
        ({"test_fraction": -0.1}, "--test_fraction takes a number from 0 up to, not including, 1, not '-0.1'"),
        ({"limit": 0}, "--limit takes a whole number from 1 up or null, not '0'"),
        ({"workers": 0}, "--workers takes a whole number from 1 up, not '0'"),
    ],
)
def test_wrong_options(folder, tmp_path, fails, options, sentence):
    given = {"source": str(folder), "out": tmp_path / "s.h5", **options}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert sentence in fails(2, command(module), words)
    assert not (tmp_path / "s.h5").exists()


def test_nothing_of_use_writes_nothing(tmp_path):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "x.wav").write_text("text")
    with pytest.raises(UserError, match=r"none of the utterances for train can be used: 1 no audio \(x\.wav\)"):
        prepare(str(tmp_path / "speech"), tmp_path / "s.h5", val_fraction=0, test_fraction=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speech"]


def test_on_the_command_line(folder, tmp_path, capsys):
    words = ["--source", str(folder), "--out", str(tmp_path / "s.h5"), "--mel.hop", "512", "--mel.padding", "centre"]
    command(module)(words)
    assert Store(tmp_path / "s.h5").spec["hop"] == 512
    with pytest.raises(SystemExit) as ending:
        command(module)([*words[:4], "--mel.fmax", "20000"])
    assert ending.value.code == 2
    assert "half the sample rate" in capsys.readouterr().err
