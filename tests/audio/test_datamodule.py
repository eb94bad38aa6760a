"""Training segments of utterances, with mel frames of the whole utterance."""

import numpy as np
import pytest
import torch

from arflows.audio.datamodule import SpeechDataModule, SpeechDataset
from arflows.core.runtime.errors import UserError
from arflows.data.audio_files import from_int16
from arflows.data.store import Store


def test_segments_are_cut_out_of_their_utterances(speech):
    store = Store(speech)
    dataset = SpeechDataset(store, "train", segment=2048, speakers=True)
    again = 3 + len(dataset)  # in the next epoch
    batch = dataset.__getitems__([3, again, 5, 7])
    torch.testing.assert_close(batch["x"], dataset.__getitems__([3, again, 5, 7])["x"])
    assert batch["x"].shape == (4, 2048)
    assert batch["x"].dtype == torch.float32
    assert batch["mel"].shape == (4, 80, 8)
    assert batch["speaker"].tolist() == store.array("train", "speakers")[[3, 3, 5, 7]].tolist()
    starts = []
    for row, x, mel in zip([3, 3, 5, 7], batch["x"], batch["mel"], strict=True):
        whole = from_int16(store.ragged("train", "waveforms")[row])
        frames = store.ragged("train", "mels")[row].astype(np.float32)
        places = [f for f in range(len(frames) - 7) if np.array_equal(whole[f * 256 : f * 256 + 2048], x.numpy())]
        assert len(places) == 1
        np.testing.assert_array_equal(mel.numpy(), frames[places[0] : places[0] + 8].T)
        starts += places
    assert starts[0] != starts[1]
    assert dataset.__getitems__([])["x"].numel() == 0


def test_every_place_of_an_utterance_is_heard(speech):
    store = Store(speech)
    frames = int(store.ragged("train", "mels").lengths[0])
    dataset = SpeechDataset(store, "train", segment=(frames - 2) * 256)
    firsts = {dataset.__getitems__([epoch * len(dataset)])["x"][0, 0].item() for epoch in range(60)}
    assert len(firsts) == 3


def test_whole_utterances(speech):
    store = Store(speech)
    dataset = SpeechDataset(store, "test")
    x = dataset.__getitems__([2])["x"]
    np.testing.assert_array_equal(x[0].numpy(), from_int16(store.ragged("test", "waveforms")[2]))
    with pytest.raises(ValueError, match="different lengths"):
        dataset.__getitems__([0, 1, 2])


def test_short_utterances_are_left_out(speech):
    store = Store(speech)
    lengths = store.ragged("train", "mels").lengths
    segment = int(np.sort(lengths)[10]) * 256
    dataset = SpeechDataset(store, "train", segment=segment)
    assert len(dataset) == (lengths * 256 >= segment).sum()
    assert dataset.left_out == 24 - len(dataset) > 0
    assert dataset.__getitems__(list(range(len(dataset))))["x"].shape == (len(dataset), segment)


def test_conditions_only_where_wanted(speech):
    store = Store(speech)
    assert set(SpeechDataset(store, "test", mels=False).__getitems__([0])) == {"x"}
    assert set(SpeechDataset(store, "test", mels=False, speakers=True).__getitems__([0])) == {"x", "speaker"}
    assert set(SpeechDataset(store, "test").__getitems__([0])) == {"x", "mel"}


def test_loaders(speech):
    data = SpeechDataModule(speech, batch_size=8, segment=2048)
    batches = list(data.train_dataloader())
    assert [batch["x"].shape for batch in batches] == [(8, 2048)] * 3
    assert all(len(batch["x"]) == 1 for batch in data.val_dataloader())
    assert len(list(data.test_dataloader())) == 24
    first, again = data.initialization_batch(), data.initialization_batch()
    torch.testing.assert_close(first["x"], again["x"])


def test_workers_bring_conditions(speech):
    data = SpeechDataModule(speech, batch_size=8, segment=2048, workers=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["mel"].shape == (8, 80, 8)


@pytest.mark.parametrize(
    ("options", "sentence"), [({"segment": 2000}, "such as 2048"), ({"segment": 0}, "segment is 0")]
)
def test_wrong_options(speech, options, sentence):
    with pytest.raises(UserError, match=sentence):
        SpeechDataModule(speech, **options)


def test_speakers_must_be_known(tmp_path, speech):
    from arflows.data.store_writer import write_store

    store = Store(speech)
    fields = {name: [np.array(store.ragged("test", name)[0])] for name in ("waveforms", "mels")}
    write_store(tmp_path / "s.h5", domain="audio", spec=store.spec, splits={"train": fields})
    with pytest.raises(UserError, match="has no speaker labels"):
        SpeechDataset(Store(tmp_path / "s.h5"), "train", speakers=True)
