"""Output of score, sample and evaluate, and their errors for unusable input."""

import csv
import json
import math
import zipfile

import h5py
import numpy as np
import pytest
import soundfile
import torch

from arflows.audio import WaveFlow, evaluate, sample, score
from arflows.audio.inputs import SpeechInput, read_mel, speaker_names, speaker_number
from arflows.audio.prepare import prepare
from arflows.audio.representation import MelSpec, log_mel
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import load_model
from arflows.data.audio_files import to_int16
from arflows.data.store import Store
from tests.faults.hostile import npy_header, pickled
from tests.launch import command

RATE = 22_050


@pytest.fixture(scope="module")
def flow(run_folder):
    return load_model(WaveFlow, str(run_folder), "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, speech):
    """Two sentences as files, and two files that cannot be used."""
    folder = tmp_path_factory.mktemp("recordings")
    waveforms = Store(speech).ragged("test", "waveforms")
    for index in range(2):
        soundfile.write(folder / f"{index}.wav", waveforms[index][: 60 * 256], RATE)
    (folder / "2_text.wav").write_text("no audio" * 99)
    soundfile.write(folder / "3_silent.wav", np.zeros(RATE), RATE)
    return folder


def fails(capsys, verb, *words):
    with pytest.raises(SystemExit) as ending:
        command(verb)([str(word) for word in words])
    assert ending.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestScore:
    def test_files(self, capsys, tmp_path, run_folder, folder, flow):
        words = ["--model", run_folder, "--speech", folder, "--out", tmp_path / "s.csv", "--curves", tmp_path / "c"]
        command(score)([str(word) for word in words])
        told = capsys.readouterr().out
        assert "skipped: 1 no audio (2_text.wav), 1 silent (3_silent.wav)" in told
        rows = rows_of(tmp_path / "s.csv")
        assert [row["utterance"] for row in rows] == ["0.wav", "1.wav"]
        for row in rows:
            samples, _ = soundfile.read(folder / row["utterance"], dtype="float32")
            x = torch.from_numpy(samples)[None]
            expected = flow.log_prob(x, mel=log_mel(x, flow.spec)).item() / x.shape[1]
            assert float(row["log_likelihood"]) == pytest.approx(expected, abs=1e-4)
            assert 0 <= float(row["percentile"]) <= 100
            curve = rows_of(tmp_path / "c" / f"{row['utterance']}.csv")
            assert len(curve) == 60
            assert np.mean([float(frame["log_likelihood"]) for frame in curve]) == pytest.approx(expected, abs=1e-4)
            assert (tmp_path / "c" / f"{row['utterance']}.png").stat().st_size > 5000

    def test_noise_is_told_from_speech(self, tmp_path, run_folder, folder):
        loud = np.random.default_rng(0).uniform(-1, 1, (2, RATE // 2))
        (tmp_path / "noise").mkdir()
        for index, wave in enumerate(loud):
            soundfile.write(tmp_path / "noise" / f"{index}.wav", wave, RATE)
        means = []
        for name in (folder, tmp_path / "noise"):
            command(score)(["--model", str(run_folder), "--speech", str(name), "--out", str(tmp_path / "s.csv")])
            means.append([float(row["log_likelihood"]) for row in rows_of(tmp_path / "s.csv")])
        assert min(means[0]) > max(means[1])

    def test_a_store_and_its_names(self, tmp_path, run_folder, speech):
        words = ["--model", run_folder, "--speech", speech, "--out", tmp_path / "s.csv", "--limit", 3, "--split", "val"]
        command(score)([str(word) for word in words])
        names = [row["utterance"] for row in rows_of(tmp_path / "s.csv")]
        assert names == Store(speech).provenance["names"]["val"][:3]

    def test_nothing_to_score(self, capsys, tmp_path, run_folder):
        (tmp_path / "x.wav").write_text("text")
        told = fails(capsys, score, "--model", run_folder, "--speech", tmp_path / "x.wav", "--out", tmp_path / "s.csv")
        assert "holds no utterance that can be scored: 1 no audio (x.wav)" in told
        assert not (tmp_path / "s.csv").exists()


class TestSample:
    def test_copy_synthesis(self, capsys, tmp_path, run_folder, folder):
        for out in ("a", "b"):
            words = ["--model", run_folder, "--speech", folder, "--out", tmp_path / out, "--seed", 3]
            command(sample)([str(word) for word in words])
        assert "skipped: 1 no audio (2_text.wav), 1 silent (3_silent.wav)" in capsys.readouterr().out
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0.wav", "1.wav", "samples.csv"]
        for name in ("0.wav", "1.wav"):
            (one, rate), (two, _) = (soundfile.read(tmp_path / out / name) for out in ("a", "b"))
            assert rate == RATE
            assert len(one) == 60 * 256
            assert np.abs(one).max() > 0
            np.testing.assert_array_equal(one, two)
        assert [row["source"] for row in rows_of(tmp_path / "a" / "samples.csv")] == ["0.wav", "1.wav"]

    def test_mel_files_say_the_same_as_their_recording(self, tmp_path, run_folder, folder, flow):
        samples, _ = soundfile.read(folder / "0.wav", dtype="float32")
        mel = log_mel(torch.from_numpy(samples)[None], flow.spec)
        (tmp_path / "mels").mkdir()
        np.save(tmp_path / "mels" / "a.npy", mel[0].numpy())
        torch.save(mel, tmp_path / "mels" / "b.pt")
        with h5py.File(tmp_path / "mels" / "c.h5", "w") as file:
            file["mel"] = mel[0].numpy()
            file.attrs["hop"] = 256
        words = ["--model", run_folder, "--speech", tmp_path / "mels", "--out", tmp_path / "out", "--count", 2]
        command(sample)([str(word) for word in words])
        words = ["--model", run_folder, "--speech", folder / "0.wav", "--out", tmp_path / "copy", "--count", 2]
        command(sample)([str(word) for word in words])
        for index in (0, 1):
            expected, _ = soundfile.read(tmp_path / "copy" / f"0-{index}.wav", dtype="int16")
            for name in "abc":
                made, _ = soundfile.read(tmp_path / "out" / f"{name}-{index}.wav", dtype="int16")
                assert np.abs(made.astype(int) - expected).max() <= 1
        first, second = (soundfile.read(tmp_path / "out" / f"a-{index}.wav")[0] for index in (0, 1))
        assert np.abs(first - second).max() > 0.01

    def test_jacobi_gives_the_same(self, tmp_path, run_folder, folder):
        for solver in ("sequential", "jacobi"):
            words = ["--model", run_folder, "--speech", folder / "0.wav", "--out", tmp_path / solver]
            command(sample)([str(word) for word in [*words, "--solver", solver]])
        one, two = (soundfile.read(tmp_path / name / "0.wav")[0] for name in ("sequential", "jacobi"))
        np.testing.assert_allclose(one, two, atol=1e-4)

    def test_filling_a_gap(self, capsys, tmp_path, run_folder, folder):
        (tmp_path / "in").mkdir()
        samples, _ = soundfile.read(folder / "0.wav")
        soundfile.write(tmp_path / "in" / "long.wav", samples, RATE)
        soundfile.write(tmp_path / "in" / "short.wav", samples[:4096], RATE)
        words = ["--model", run_folder, "--speech", tmp_path / "in", "--out", tmp_path / "out"]
        command(sample)([str(word) for word in [*words, "--gap", "[0.3, 0.4]", "--count", 2]])
        assert "skipped: short.wav: the gap 0.3 … 0.4 s does not lie in short.wav" in capsys.readouterr().out
        rows = rows_of(tmp_path / "out" / "samples.csv")
        assert [row["file"] for row in rows] == ["long-0.wav", "long-1.wav"]
        assert all(math.isfinite(float(row["log_likelihood"])) for row in rows)
        filled = [soundfile.read(tmp_path / "out" / row["file"])[0] for row in rows]
        outside = np.r_[0 : round(0.3 * RATE), round(0.4 * RATE) : len(samples)]
        for waveform in filled:
            np.testing.assert_allclose(waveform[outside], samples[outside], atol=1e-4)
        assert np.abs(filled[0] - filled[1]).max() > 1e-3

    def test_speaking_freely(self, capsys, tmp_path):
        torch.manual_seed(0)
        free = WaveFlow(conditional=False, height=8, channels=4, layers=2, flows=2)
        free.save_pretrained(tmp_path / "free")
        words = ["--model", tmp_path / "free", "--out", tmp_path / "out", "--count", 2, "--seconds", 0.5]
        command(sample)([str(word) for word in words])
        lengths = [len(soundfile.read(tmp_path / "out" / f"{index:04d}.wav")[0]) for index in (0, 1)]
        assert lengths == [43 * 256] * 2

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            ([], "the model needs mel spectrograms: give --speech"),
            (["--count", "0"], "--count takes a whole number from 1 up, not '0'"),
            (["--temperature", "0"], "--temperature takes a number above 0, not '0'"),
            (["--seconds", "-1"], "--seconds takes a number above 0, not '-1'"),
            (["--speech", "no/such"], "there is no no/such"),
            (["--gap", "[0.1, 0.2]"], "fills in recordings"),
        ],
    )
    def test_wrong_options(self, capsys, tmp_path, run_folder, words, sentence):
        told = fails(capsys, sample, "--model", run_folder, "--out", tmp_path / "out", *words)
        assert sentence in told
        assert not (tmp_path / "out").exists()


class TestMels:
    spec = MelSpec()
    good = log_mel(0.1 * torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)), spec)[0].numpy()

    @pytest.mark.report
    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda mel: mel[:64], "64 bands, the model 80"),
            (lambda mel: mel.T, "transpose it"),
            (lambda mel: 20 / math.log(10) * mel, "looks like decibels"),
            (lambda mel: mel * np.nan, "not finite floats"),
            (lambda mel: mel[:, :0], "no frames"),
            (lambda mel: np.stack([mel, mel]), "give one mel spectrogram"),
            (lambda mel: mel[0], "give one mel spectrogram"),
        ],
        ids=["bands", "turned", "decibels", "nan", "empty", "two", "one band"],
    )
    def test_wrong_arrays(self, tmp_path, change, sentence):
        np.save(tmp_path / "x.npy", change(self.good))
        with pytest.raises(UserError, match=rf"x\.npy.*{sentence}"):
            read_mel(tmp_path / "x.npy", self.spec)

    @pytest.mark.report
    def test_settings_in_a_file_are_compared(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["mel"] = self.good
            file["mel"].attrs["hop"] = 300
            file["mel"].attrs["fmax"] = 11_025
        with pytest.raises(UserError, match=r"x\.h5 does not fit the model.*hop 256 ≠ 300, fmax 8000.0 ≠ 11025.0"):
            read_mel(tmp_path / "x.h5", self.spec)

    def test_files_that_are_none(self, tmp_path):
        (tmp_path / "x.npy").write_text("text")
        (tmp_path / "x.pt").write_bytes(b"\x80\x04cos\nsystem\n")
        (tmp_path / "x.txt").write_text("text")
        torch.save({"a": 1}, tmp_path / "d.pt")
        (tmp_path / "huge.npy").write_bytes(npy_header((80, 2**40), "<f4"))
        pickled(tmp_path / "objects.npz", "mel")
        with zipfile.ZipFile(tmp_path / "objects.npz") as archive:
            (tmp_path / "objects.npy").write_bytes(archive.read("mel.npy"))
        with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb/data/0", bytes(1 << 24))
        with h5py.File(tmp_path / "link.h5", "w") as file:
            file["mel"] = h5py.ExternalLink("/etc/other.h5", "/mel")
        for name, sentence in (
            ("x.npy", r"x\.npy is damaged"),
            ("huge.npy", "claims .* bytes, and there are"),
            ("objects.npy", "arrays of Python objects, which are refused"),
            ("link.h5", "leads elsewhere, which is refused"),
            ("bomb.pt", "is compressed"),
            ("x.pt", "cannot be read"),
            ("x.txt", "is not a mel spectrogram file"),
            ("d.pt", "holds a dict"),
            ("no.npy", "there is no file"),
        ):
            with pytest.raises(UserError, match=sentence):
                read_mel(tmp_path / name, self.spec)
        assert not (tmp_path / "harm").exists()

    def test_one_bad_mel_does_not_stop_the_others(self, capsys, tmp_path, run_folder):
        (tmp_path / "mels").mkdir()
        np.save(tmp_path / "mels" / "good.npy", self.good)
        np.save(tmp_path / "mels" / "short.npy", self.good[:40])
        command(sample)(
            ["--model", str(run_folder), "--speech", str(tmp_path / "mels"), "--out", str(tmp_path / "out")]
        )
        assert "skipped: short.npy: has 40 bands" in capsys.readouterr().out
        assert (tmp_path / "out" / "good.wav").exists()


class TestSpeakers:
    def test_of_a_store(self, speaker_run, speech):
        flow = load_model(WaveFlow, str(speaker_run), "cpu")
        names = speaker_names(str(speaker_run))
        assert names == ["ada", "ben", "cleo", "dan", "eve"]
        for utterance in SpeechInput(speech, flow, speakers=names, limit=3).utterances():
            assert utterance.name.startswith(names[int(utterance.condition.speaker)])

    def test_unknown_ones_are_skipped_and_the_rest_goes_on(self, capsys, tmp_path, speaker_run, folder):
        for who in ("ada", "zoe"):
            (tmp_path / "in" / who).mkdir(parents=True)
            (tmp_path / "in" / who / "x.wav").write_bytes((folder / "0.wav").read_bytes())
        out = tmp_path / "s.csv"
        command(score)(["--model", str(speaker_run), "--speech", str(tmp_path / "in"), "--out", str(out)])
        assert [row["utterance"] for row in rows_of(out)] == ["ada/x.wav"]
        assert "1 of a speaker unknown to the model (zoe/x.wav)" in capsys.readouterr().out

    def test_who_speaks_matters(self, tmp_path, speaker_run, folder):
        waves = []
        for who in ("ada", "dan"):
            words = ["--model", speaker_run, "--speech", folder / "0.wav", "--out", tmp_path / who, "--speaker", who]
            command(sample)([str(word) for word in words])
            waves.append(soundfile.read(tmp_path / who / "0.wav")[0])
        assert np.abs(waves[0] - waves[1]).max() > 0

    def test_who_speaks_must_be_told(self, capsys, tmp_path, speaker_run, folder):
        words = ["--model", speaker_run, "--speech", folder / "0.wav", "--out", tmp_path / "out"]
        assert "without a speaker label (add --speaker)" in fails(capsys, sample, *words)
        assert "does not know the speaker 'zoe': give one of ada, ben" in fails(
            capsys, sample, *words, "--speaker", "zoe"
        )

    def test_a_model_without_speakers(self, flow):
        with pytest.raises(UserError, match="the model has no speakers"):
            speaker_number(flow, "ada", [])


class TestEvaluate:
    def test_figures(self, tmp_path, run_folder, speech, flow):
        out = tmp_path / "figures.json"
        words = ["--model", run_folder, "--store", speech, "--out", out, "--limit", 2, "--perceptual", "false"]
        command(evaluate)([str(word) for word in words])
        result = json.loads(out.read_text())
        nats, samples = [], []
        for utterance in SpeechInput(speech, flow, limit=2).utterances():
            nats.append(flow.log_prob(utterance.waveform, **utterance.condition.keywords()).item())
            samples.append(utterance.waveform.shape[1])
        mean = sum(nats) / sum(samples)
        assert result["log_likelihood"]["value"] == pytest.approx(mean, abs=1e-4)
        assert result["log_likelihood"]["unit"] == "nats/sample"
        # The noise of dequantisation hardly matters to an almost untrained model.
        assert result["bits_per_sample"]["value"] == pytest.approx(15 - mean / math.log(2), abs=0.05)
        assert set(result["quality"]) >= {"mcd", "mrstft", "f0_rmse", "voicing_f1", "tones", "mel_distance"}
        assert result["real_time_factor"]["value"] > 0
        assert result["data"]["source"] == "espeak"
        assert result["model"]["class"] == "WaveFlow"
        assert (tmp_path / "figures.png").stat().st_size > 10_000
        for name in ("original", "synthesised"):
            assert len(soundfile.read(tmp_path / f"figures-{name}.wav")[0]) == samples[0]

    def test_for_each_speaker(self, tmp_path, speaker_run, speech):
        out = tmp_path / "figures.json"
        words = ["--model", speaker_run, "--store", speech, "--out", out, "--limit", 4, "--perceptual", "false"]
        command(evaluate)([str(word) for word in [*words, "--plots", 0]])
        result = json.loads(out.read_text())
        names = Store(speech).provenance["names"]["test"][:4]
        assert sorted(result["speakers"]) == sorted({name.split("-")[0] for name in names})
        assert sum(figures["log_likelihood"]["count"] for figures in result["speakers"].values()) == 4
        assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"]

    @pytest.mark.report
    def test_other_mels_are_refused(self, capsys, tmp_path, run_folder):
        prepare("espeak", tmp_path / "s.h5", mel=MelSpec(hop=128), limit=2)
        told = fails(
            capsys, evaluate, "--model", run_folder, "--store", tmp_path / "s.h5", "--out", tmp_path / "f.json"
        )
        assert "hop 256 ≠ 128" in told
        assert "prepare the speech with --mel.hop 256" in told

    def test_long_enough_to_round_trip(self, folder, flow):
        """Samples of a file reach the model unchanged: 16 bits, whole frames."""
        given = SpeechInput(folder / "0.wav", flow)
        (utterance,) = given.utterances()
        samples, _ = soundfile.read(folder / "0.wav", dtype="int16")
        np.testing.assert_array_equal(to_int16(utterance.waveform[0].numpy()), samples)
