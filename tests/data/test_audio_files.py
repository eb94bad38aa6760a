"""Audio of any kind becomes one channel at one rate, or a reason why it cannot."""

import io
import os

import numpy as np
import pytest
import soundfile

from arflows.data.audio_files import SkippedAudio, convert_audio, from_int16, read_audio, to_int16, write_wav

RATE = 22_050


def tone(seconds=0.5, rate=RATE, level=0.5, hertz=440.0):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, samples, rate=RATE, **options):
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options", "remark", "tolerance"),
    [
        ("x.wav", {"subtype": "PCM_16"}, None, 4e-5),
        ("x.wav", {"subtype": "PCM_U8"}, "from 8 bits", 1e-2),
        ("x.wav", {"subtype": "PCM_24"}, "from 24 bits", 1e-6),
        ("x.wav", {"subtype": "PCM_32"}, "from 32 bits", 1e-6),
        ("x.wav", {"subtype": "FLOAT"}, "from floats", 1e-7),
        ("x.wav", {"subtype": "DOUBLE"}, "from floats", 1e-7),
        ("x.wav", {"subtype": "ULAW"}, "from µ-law", 2e-2),
        ("x.flac", {"subtype": "PCM_16"}, None, 4e-5),
        ("x.flac", {"subtype": "PCM_24"}, "from 24 bits", 1e-6),
        ("x.aiff", {"subtype": "PCM_16"}, None, 4e-5),
        ("x.ogg", {}, "from Vorbis", 2e-2),
        ("x.mp3", {}, "from MP3", 5e-2),
    ],
)
def test_formats_and_bits(tmp_path, name, options, remark, tolerance):
    clip = read_audio(write(tmp_path / name, tone(), **options), RATE)
    assert clip.samples.dtype == np.float32
    assert clip.remarks == (() if remark is None else (remark,))
    inner = slice(2000, 9000)  # codecs fade in
    np.testing.assert_allclose(clip.samples[inner], tone()[inner], atol=tolerance)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(tmp_path, channels):
    levels = np.linspace(0.1, 0.9, channels)
    path = write(tmp_path / "x.wav", tone()[:, None] * levels, subtype="FLOAT")
    clip = read_audio(path, RATE)
    assert f"mixed down from {channels} channels" in clip.remarks
    np.testing.assert_allclose(clip.samples, tone() * levels.mean(), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000, 96_000])
def test_other_rates_are_resampled(tmp_path, rate):
    clip = read_audio(write(tmp_path / "x.wav", tone(rate=rate), rate), RATE)
    assert clip.remarks == (f"resampled from {rate:,} Hz",)
    assert abs(len(clip.samples) - RATE // 2) <= 1
    np.testing.assert_allclose(clip.samples[1000:9000], tone()[1000:9000], atol=1e-3)


def test_what_lies_above_half_the_rate_is_gone():
    clip = convert_audio(tone(rate=48_000, hertz=15_000)[:, None], 48_000, RATE, subtype="PCM_16")
    assert np.abs(clip.samples[500:-500]).max() < 1e-4


def test_floats_above_one_are_scaled_down_and_other_units_refused():
    clip = convert_audio(tone(level=1.4)[:, None], RATE, RATE, subtype="FLOAT")
    assert "scaled down from peaks above 1" in clip.remarks
    assert np.abs(clip.samples).max() == pytest.approx(1.0)
    np.testing.assert_allclose(clip.samples, tone(), atol=0.51)
    with pytest.raises(SkippedAudio, match="far outside"):
        convert_audio(tone(level=20_000)[:, None], RATE, RATE, subtype="FLOAT")


def test_clipping_is_told():
    clipped = np.clip(tone(level=3), -1, 1)[:, None]
    assert any("clipped" in remark for remark in convert_audio(clipped, RATE, RATE, subtype="PCM_16").remarks)
    assert convert_audio(tone(level=0.99)[:, None], RATE, RATE, subtype="PCM_16").remarks == ()


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((RATE, 1), np.float32), "silent"),
        (np.full((RATE, 1), 0.25, np.float32), "of one constant value"),
        (np.where(np.arange(RATE) == 7, np.nan, 0.1).astype(np.float32)[:, None], "NaN or infinite"),
        (np.where(np.arange(RATE) == 7, np.inf, 0.1).astype(np.float32)[:, None], "NaN or infinite"),
        (np.zeros((0, 1), np.float32), "empty"),
        (tone(0.01)[:, None], "shorter than 1024 samples"),
    ],
    ids=["silence", "dc", "nan", "inf", "no samples", "short"],
)
def test_nothing_of_use(samples, reason):
    with pytest.raises(SkippedAudio, match=reason):
        convert_audio(samples, RATE, RATE, subtype="FLOAT", shortest=1024)


class TestFilesThatAreNone:
    def test_missing_empty_folder(self, tmp_path):
        (tmp_path / "empty.wav").touch()
        (tmp_path / "folder.wav").mkdir()
        for name, reason in (("no.wav", "missing"), ("empty.wav", "empty"), ("folder.wav", "a folder")):
            with pytest.raises(SkippedAudio, match=reason):
                read_audio(tmp_path / name, RATE)

    def test_text_named_wav(self, tmp_path):
        (tmp_path / "x.wav").write_text("Dear diary, today I recorded nothing. " * 20)
        with pytest.raises(SkippedAudio, match="no audio"):
            read_audio(tmp_path / "x.wav", RATE)

    def test_no_samples(self, tmp_path):
        with pytest.raises(SkippedAudio, match="empty"):
            read_audio(write(tmp_path / "x.wav", tone(0)), RATE)

    @pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.aiff"])
    def test_truncated(self, tmp_path, name):
        path = write(tmp_path / name, tone(2))
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(SkippedAudio, match=r"truncated|damaged"):
            read_audio(path, RATE)

    def test_wav_from_a_pipe_is_whole(self, tmp_path):
        path = write(tmp_path / "x.wav", tone(0.5))
        content = bytearray(path.read_bytes())
        place = content.index(b"data") + 4
        content[place : place + 4] = b"\xff\xff\xff\xff"
        content[4:8] = b"\xff\xff\xff\xff"
        path.write_bytes(content)
        assert len(read_audio(path, RATE).samples) == len(tone(0.5))

    def test_from_a_stream(self):
        stream = io.BytesIO()
        soundfile.write(stream, tone(), RATE, format="WAV")
        stream.seek(0)
        assert len(read_audio(stream, RATE).samples) == len(tone())


def test_sixteen_bits_come_back_exactly():
    every = np.arange(-32_768, 32_768).astype(np.int16)
    np.testing.assert_array_equal(to_int16(from_int16(every)), every)
    np.testing.assert_array_equal(to_int16(np.array([-2, 1, 2], np.float32)), [-32_768, 32_767, 32_767])


def test_wav_is_what_was_written(tmp_path):
    write_wav(tmp_path / "x.wav", tone(), RATE)
    clip = read_audio(tmp_path / "x.wav", RATE)
    np.testing.assert_array_equal(to_int16(clip.samples), to_int16(tone()))
