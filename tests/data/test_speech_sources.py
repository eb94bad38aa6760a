"""Layouts of speech corpora, splits that share nothing, and the built-in speech."""

import numpy as np
import pytest
import soundfile

from arflows.core.runtime.errors import UserError
from arflows.data.audio_files import write_wav
from arflows.data.espeak import SpokenUtterance, espeak, speak
from arflows.data.sentences import SENTENCES
from arflows.data.speech_sources import (
    LJSPEECH_CLIPS,
    Recording,
    assign_splits,
    read_speech,
    sentence,
    shared,
)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(10), 22_050)


def facts(source):
    return {u.name: (u.text, u.speaker, u.split) for u in source.utterances}


class TestLayouts:
    def test_metadata_with_splits(self, tmp_path):
        for name in "ab":
            touch(tmp_path / "wavs" / f"{name}.flac")
        (tmp_path / "metadata.csv").write_text('id|text|split\na|He said "no.|train\nb|Yes.|valid\nc|Lost.|test\n')
        source = read_speech(tmp_path)
        assert facts(source) == {
            "a": ('He said "no.', None, "train"),
            "b": ("Yes.", None, "val"),
            "c": ("Lost.", None, "test"),
        }
        assert source.utterances[0].file == tmp_path / "wavs" / "a.flac"

    def test_small_ljspeech_has_no_splits_of_its_own(self, tmp_path):
        touch(tmp_path / "wavs" / "LJ001-0001.wav")
        touch(tmp_path / "wavs" / "LJ001-0002.wav")
        (tmp_path / "metadata.csv").write_text("LJ001-0001|In 1850|In eighteen fifty\n")
        source = read_speech(tmp_path)
        assert facts(source) == {"LJ001-0001": ("In eighteen fifty", None, None)}
        assert source.notes["files not in metadata.csv"] == 1

    def test_ljspeech_holds_out_the_first_clips_as_the_literature_does(self, tmp_path):
        names = [f"LJ{chapter:03d}-{clip:04d}" for chapter in range(1, 51) for clip in range(1, 263)]
        assert len(names) == LJSPEECH_CLIPS
        (tmp_path / "metadata.csv").write_text("".join(f"{name}|{name}|{name}\n" for name in reversed(names)))
        source = read_speech(tmp_path)
        held_out = {u.name for u in source.utterances if u.split == "test"}
        assert held_out == set(names[:1310])
        splits = assign_splits(source.utterances, "sentence", {"val": 0.01, "test": 0.1}, np.random.default_rng(0))
        assert [len(splits[split]) for split in ("train", "val", "test")] == [11_672, 118, 1310]

    def test_vctk(self, tmp_path):
        for name in ("p225_001_mic1", "p225_001_mic2", "p225_002_mic1"):
            touch(tmp_path / "wav48_silence_trimmed" / "p225" / f"{name}.flac")
        touch(tmp_path / "wav48_silence_trimmed" / "s5" / "s5_001_mic1.flac")
        (tmp_path / "txt" / "p225").mkdir(parents=True)
        (tmp_path / "txt" / "p225" / "p225_001.txt").write_text("Please call Stella.\n")
        source = read_speech(tmp_path)
        assert list(facts(source).values()) == [
            ("Please call Stella.", "p225", None),
            (None, "p225", None),
            (None, "s5", None),
        ]
        assert source.notes["layout"] == "VCTK"

    def test_libritts(self, tmp_path):
        for subset, speaker in (("train-clean-100", 103), ("dev-clean", 84), ("test-other", 7)):
            touch(tmp_path / subset / f"{speaker}" / "12" / f"{speaker}_12_000001_000000.wav")
        text = tmp_path / "dev-clean" / "84" / "12" / "84_12_000001_000000.normalized.txt"
        text.write_text("Hello.")
        source = read_speech(tmp_path)
        assert sorted(facts(source).values(), key=str) == [
            ("Hello.", "84", "val"),
            (None, "103", "train"),
            (None, "7", "test"),
        ]
        alone = read_speech(tmp_path / "dev-clean")
        assert list(facts(alone).values()) == [("Hello.", "84", None)]

    def test_folder_with_splits_and_speakers(self, tmp_path):
        for name in ("train/ann/1.wav", "train/bob/1.mp3", "test/bob/2.ogg"):
            touch(tmp_path / name)
        (tmp_path / "train" / "ann" / "notes.txt").write_text("not audio")
        assert facts(read_speech(tmp_path)) == {
            "train/ann/1.wav": (None, "ann", "train"),
            "train/bob/1.mp3": (None, "bob", "train"),
            "test/bob/2.ogg": (None, "bob", "test"),
        }

    def test_flat_folder_and_single_file(self, tmp_path):
        touch(tmp_path / "a.wav")
        touch(tmp_path / "b" / "c.wav")
        assert facts(read_speech(tmp_path)) == {"a.wav": (None, None, None), "b/c.wav": (None, None, None)}
        assert facts(read_speech(tmp_path / "a.wav")) == {"a.wav": (None, None, None)}

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("a\n", "must have lines"),
            ("", "must have lines"),
            ("a|x|train\nb|y|tset\n", "gives b the split 'tset'"),
            ("a|x|train\nb|y\n", "gives b the split ''"),
        ],
    )
    def test_wrong_metadata(self, tmp_path, content, sentence):
        (tmp_path / "metadata.csv").write_text(content)
        with pytest.raises(UserError, match=sentence):
            read_speech(tmp_path)

    def test_wrong_encoding_of_metadata(self, tmp_path):
        (tmp_path / "metadata.csv").write_bytes("a|Grüße\n".encode("latin-1"))
        with pytest.raises(UserError, match=r"metadata\.csv is not text in UTF-8"):
            read_speech(tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match="there is no"):
            read_speech(tmp_path / "no")
        with pytest.raises(UserError, match="holds no audio files"):
            read_speech(tmp_path)
        (tmp_path / "x.txt").touch()
        with pytest.raises(UserError, match="is no audio file"):
            read_speech(tmp_path / "x.txt")


def people(sentences=30, speakers=5):
    return [
        Recording(name=f"{who}-{what}", file=None, text=f"Sentence {what}!", speaker=f"p{who}")
        for who in range(speakers)
        for what in range(sentences)
    ]


class TestSplits:
    @pytest.mark.parametrize("by", ["sentence", "speaker"])
    def test_nothing_leaks(self, by):
        utterances = people()
        splits = assign_splits(utterances, by, {"val": 0.2, "test": 0.2}, np.random.default_rng(1))
        assert list(splits) == ["train", "val", "test"]
        assert sorted(u.name for part in splits.values() for u in part) == sorted(u.name for u in utterances)
        keys = [{(sentence(u) if by == "sentence" else u.speaker) for u in part} for part in splits.values()]
        assert not keys[0] & keys[1]
        assert not keys[0] & keys[2]
        assert not keys[1] & keys[2]
        assert len(splits["val"]) == len(splits["test"]) == 30
        assert shared(splits, by) == {}

    def test_spelling_does_not_hide_a_sentence(self):
        pair = [Recording(name=n, file=None, text=t) for n, t in (("a", "Well, yes."), ("b", "  well yes"))]
        assert sentence(pair[0]) == sentence(pair[1])
        with pytest.raises(UserError, match="none is left for training"):
            assign_splits(pair, "sentence", {"val": 0.5}, np.random.default_rng(0))

    def test_splits_of_the_source_stay_and_their_leaks_are_counted(self):
        utterances = [
            Recording(name="a", file=None, text="One.", split="train"),
            Recording(name="b", file=None, text="one", split="test"),
            Recording(name="c", file=None, text="Two.", split="test"),
        ]
        splits = assign_splits(utterances, "sentence", {"val": 0.0, "test": 0.5}, np.random.default_rng(0))
        assert {split: [u.name for u in part] for split, part in splits.items()} == {"train": ["a"], "test": ["b", "c"]}
        assert shared(splits, "sentence") == {"test": 1}

    def test_unknown_speakers_cannot_be_kept_apart(self):
        with pytest.raises(UserError, match="needs to know who speaks"):
            assign_splits([Recording(name="a", file=None)], "speaker", {}, np.random.default_rng(0))

    def test_the_seed_decides(self):
        def test_names(seed):
            splits = assign_splits(people(), "sentence", {"test": 0.2}, np.random.default_rng(seed))
            return {u.name for u in splits["test"]}

        assert test_names(1) == test_names(1)
        assert test_names(1) != test_names(2)


class TestEspeak:
    def test_the_same_words_sound_the_same_whatever_was_said_before(self):
        first, rate = speak("Is this the same?", "en-us+f2", 50, 170, seed=3)
        speak("Something else altogether.", "en+f4", 40, 150)
        again, _ = speak("Is this the same?", "en-us+f2", 50, 170, seed=3)
        assert rate == 22_050
        np.testing.assert_array_equal(first, again)
        assert 0.5 < len(first) / rate < 3
        assert 1000 < np.abs(first).max() < 32_767

    def test_rate_and_pitch_and_voice_matter(self):
        text = "A row of poplars marks the edge of the field."
        slow, fast = (len(speak(text, "en-us+m3", 50, rate)[0]) for rate in (120, 220))
        assert slow > 1.3 * fast
        low, high = (speak(text, "en-us+m3", pitch, 170)[0] for pitch in (20, 90))
        assert len(low) != len(high) or (low != high).any()

    def test_unknown_voice(self):
        with pytest.raises(UserError, match="no voice 'nobody'"):
            speak("Hello.", "nobody", 50, 170)

    def test_the_source(self):
        source = espeak()
        assert len(SENTENCES) == len(set(SENTENCES)) >= 120
        assert len(source.utterances) == 2 * len(SENTENCES)
        assert len({u.speaker for u in source.utterances}) == 5
        assert facts(source) == facts(espeak())
        assert espeak(1).utterances[0] != source.utterances[0]
        utterance = source.utterances[0]
        assert isinstance(utterance, SpokenUtterance)
        clip, again = utterance.read(16_000), utterance.read(16_000)
        np.testing.assert_array_equal(clip.samples, again.samples)
        assert clip.remarks == ("resampled from 22,050 Hz",)
        quiet = np.lib.stride_tricks.sliding_window_view(clip.samples, 400)[::400].std(1)
        assert quiet.min() > 5e-5  # never digital silence


def metadata(tmp_path, lines, files):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_wav(tmp_path / name, np.zeros(100, np.float32), 22_050)
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.report
@pytest.mark.parametrize("id_", ["u.1", "u.1.wav", "wavs/u.1.wav"])
def test_an_id_is_the_whole_name_of_its_file(tmp_path, id_):
    folder = metadata(tmp_path, [f"{id_}|text"], ["wavs/u.0.wav", "wavs/u.1.wav", "wavs_old/u.1.wav"])
    source = read_speech(folder)
    assert [utterance.file for utterance in source.utterances] == [folder / "wavs/u.1.wav"]
    assert source.notes["files not in metadata.csv"] == 2


@pytest.mark.report
@pytest.mark.parametrize(
    ("lines", "files", "sentence"),
    [
        (["u|a", "v|b", "u|c"], ["wavs/u.wav", "wavs/v.wav"], "the id 'u' in several lines"),
        (["u|a", "u.wav|b"], ["wavs/u.wav"], "names the file wavs/u.wav by several ids"),
        (["u|a"], ["one/u.wav", "two/u.wav"], "the id 'u' may be one/u.wav, two/u.wav: write the path"),
        (["u|a"], ["wavs/u.wav", "wavs/u.flac"], "the id 'u' may be wavs/u.flac, wavs/u.wav"),
    ],
)
def test_ids_that_are_not_unique_are_refused(tmp_path, lines, files, sentence):
    with pytest.raises(UserError, match=sentence):
        read_speech(metadata(tmp_path, lines, files))


@pytest.mark.report
def test_audio_is_known_by_its_content_and_other_files_are_counted(tmp_path):
    soundfile.write(tmp_path / "a.ogg", np.zeros(9600), 48_000, format="OGG", subtype="OPUS")
    (tmp_path / "a.ogg").rename(tmp_path / "a.webm")
    soundfile.write(tmp_path / "b.sph", np.zeros(1600), 16_000, format="NIST", subtype="PCM_16")
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "data.raw").write_bytes(bytes(100))
    source = read_speech(tmp_path)
    assert [utterance.name for utterance in source.utterances] == ["a.webm", "b.sph"]
    assert source.left_out == {"no audio": ["data.raw", "notes.txt"]}
