import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from arflows.core.runtime.errors import UserError
from arflows.data.batches import BatchesInTurn
from arflows.data.store import Store
from arflows.data.store_writer import write_store
from arflows.vision.datamodule import ImageDataModule, ImageDataset
from arflows.vision.representation import ImageSpec

SPEC = ImageSpec(4, 4, 3)


def images(count, seed=0):
    """Images that say in their first two pixels which they are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *SPEC.shape), dtype=np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 1, 0, 0] = np.arange(count) // 256, np.arange(count) % 256
    return pixels


def numbers(batch):
    return (batch["x"][:, 0, 0, 0].long() * 256 + batch["x"][:, 1, 0, 0].long()).tolist()


@pytest.fixture
def path(tmp_path):
    counts = {"train": 300, "val": 70, "test": 90}
    write_store(
        tmp_path / "data.h5",
        domain="vision",
        spec=SPEC.as_dict(),
        splits={split: {"images": images(count), "labels": np.arange(count) % 5} for split, count in counts.items()},
        categories={"labels": list("abcde")},
    )
    return tmp_path / "data.h5"


def epoch(loader, number=0):
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(number)
    return list(loader)


def test_batches(path):
    data = ImageDataModule(path, batch_size=32)
    assert data.spec == SPEC
    assert data.class_count == 5
    for batch in epoch(data.train_dataloader()):
        assert batch["x"].dtype == torch.uint8
        assert batch["x"].shape == (32, 3, 4, 4)
        np.testing.assert_array_equal(batch["x"], images(300)[numbers(batch)])
        assert batch["context"].dtype == torch.int64
        assert batch["context"].tolist() == [number % 5 for number in numbers(batch)]


def test_training_batches_are_full_and_shuffled_anew(path):
    loader = ImageDataModule(path, batch_size=64).train_dataloader()
    first, second = ([number for batch in epoch(loader, index) for number in numbers(batch)] for index in (0, 1))
    assert len(first) == len(set(first)) == 4 * 64
    assert first != second
    assert first != sorted(first)
    assert first == [number for batch in epoch(loader, 0) for number in numbers(batch)]
    other = ImageDataModule(path, batch_size=64, seed=1).train_dataloader()
    assert first != [number for batch in epoch(other) for number in numbers(batch)]


@pytest.mark.parametrize(("split", "count"), [("val", 70), ("test", 90)])
def test_evaluation_is_complete_and_in_order(path, split, count):
    data = ImageDataModule(path, eval_batch_size=32, flip=True)
    batches = list(getattr(data, f"{split}_dataloader")())
    assert [number for batch in batches for number in numbers(batch)] == list(range(count))
    np.testing.assert_array_equal(torch.cat([batch["x"] for batch in batches]), images(count))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(path, method):
    data = ImageDataModule(path, batch_size=32)
    alone = epoch(data.train_dataloader())
    dataset = data.dataset("train")
    dataset[0]  # mapped in this process before the workers start
    sampler = data.train_dataloader().sampler
    together = DataLoader(
        dataset,
        32,
        sampler=sampler,
        drop_last=True,
        num_workers=2,
        multiprocessing_context=method,
        collate_fn=data.train_dataloader().collate_fn,
    )
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.equal(ours["x"], theirs["x"])
        assert torch.equal(ours["context"], theirs["context"])


def test_workers_option(path):
    alone = epoch(ImageDataModule(path, batch_size=32).train_dataloader())
    together = epoch(ImageDataModule(path, batch_size=32, workers=2).train_dataloader())
    assert all(torch.equal(ours["x"], theirs["x"]) for ours, theirs in zip(alone, together, strict=True))


def test_flip(path):
    torch.manual_seed(0)
    dataset = ImageDataModule(path, batch_size=300, flip=True).train_dataloader().dataset
    original, seen = torch.from_numpy(images(300)), dataset.__getitems__(list(range(300)))["x"]
    mirrored = (seen == original.flip(-1)).flatten(1).all(1)
    unchanged = (seen == original).flatten(1).all(1)
    assert (mirrored ^ unchanged).all()
    assert 100 < mirrored.sum() < 200
    assert seen.dtype == torch.uint8


def test_limit(path):
    data = ImageDataModule(path, batch_size=16, limit=40)
    assert sum(len(batch["x"]) for batch in data.val_dataloader()) == 40
    seen = {number for batch in epoch(data.train_dataloader()) for number in numbers(batch)}
    chosen = {number for batch in data.loader("train") for number in numbers(batch)}
    assert len(chosen) == 40
    assert seen < chosen
    assert max(chosen) > 100
    assert len(ImageDataModule(path, limit=1000).dataset("train")) == 300


def test_initialization_batch_is_the_same_everywhere(path):
    batches = [ImageDataModule(path, batch_size=32, flip=True, workers=workers) for workers in (0, 2)]
    first, second = (data.initialization_batch() for data in batches)
    assert torch.equal(first["x"], second["x"])
    assert len(set(numbers(first))) == 256
    np.testing.assert_array_equal(first["x"], images(300)[numbers(first)])


def test_without_labels(path, tmp_path):
    data = ImageDataModule(path)
    data.labels = False
    assert set(next(iter(data.train_dataloader()))) == {"x"}
    write_store(tmp_path / "bare.h5", domain="vision", spec=SPEC.as_dict(), splits={"train": {"images": images(100)}})
    data = ImageDataModule(tmp_path / "bare.h5")
    assert data.class_count == 0
    assert set(next(iter(data.train_dataloader()))) == {"x"}
    assert set(data.dataset("train")[3]) == {"x"}


class Sum(lightning.LightningModule):
    """Counts what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, index):
        self.seen["train"].append(numbers(batch))
        return self.weight * batch["x"].float().mean()

    def validation_step(self, batch, index):
        self.seen["val"] += numbers(batch)

    def test_step(self, batch, index):
        self.seen["test"] += numbers(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def trainer(folder, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(default_root_dir=folder, accelerator="cpu", **(quiet | options))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
class TestWithLightning:
    def test_fit_and_test(self, path, tmp_path):
        model, data = Sum(), ImageDataModule(path, batch_size=100)
        trainer(tmp_path, max_epochs=2).fit(model, data)
        assert len(model.seen["train"]) == 6
        first, second = model.seen["train"][:3], model.seen["train"][3:]
        assert first != second
        for batches in (first, second):
            assert sorted(number for batch in batches for number in batch) == list(range(300))
        assert model.seen["val"] == list(range(70)) * 2
        trainer(tmp_path).test(model, data, verbose=False)
        assert model.seen["test"] == list(range(90))

    @pytest.mark.filterwarnings(
        "ignore:You're resuming", "ignore:Checkpoint directory", "ignore:The dirpath has changed"
    )
    @pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 24}])
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end", "on_validation_end"])
    def test_a_resumed_run_sees_the_images_that_are_left(self, path, tmp_path, hook, workers, end):
        """Interrupted before a step, after one, and between two epochs."""

        class Interrupt(Callback):
            pass

        def interrupt(self, trainer, *args):
            if trainer.fit_loop.epoch_loop.total_batch_idx >= 8:
                raise RuntimeError("interrupted")

        setattr(Interrupt, hook, interrupt)

        def fit(model, *callbacks, **options):
            data = ImageDataModule(path, batch_size=50, workers=workers, eval_batch_size=70)
            trainer(tmp_path, enable_checkpointing=True, callbacks=[*callbacks], **end).fit(model, data, **options)
            return model.seen["train"]

        whole = fit(Sum(), ModelCheckpoint(tmp_path / "whole"))
        model = Sum()
        with pytest.raises(RuntimeError, match="interrupted"):
            fit(model, Interrupt(), ModelCheckpoint(tmp_path, "last", save_on_exception=True))
        parts = model.seen["train"][:]
        rest = fit(Sum(), ModelCheckpoint(tmp_path / "rest"), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert len(whole) == 24
        assert parts + rest == whole

    def test_no_validation_images(self, tmp_path):
        path = tmp_path / "bare.h5"
        write_store(path, domain="vision", spec=SPEC.as_dict(), splits={"train": {"images": images(100)}})
        model = Sum()
        trainer(tmp_path, max_epochs=1).fit(model, ImageDataModule(path))
        assert len(model.seen["train"]) == 1
        with pytest.raises(UserError, match="no split 'test': it has train"):
            trainer(tmp_path).test(model, ImageDataModule(path))

    def test_processes_share_an_epoch(self, path, monkeypatch):
        """Two processes see different images, together the whole epoch, in batches of full size."""
        seen = []
        for rank in (0, 1):
            data = ImageDataModule(path, batch_size=30)
            data.trainer = type("Trainer", (), {"world_size": 2, "global_rank": rank})()
            batches = epoch(data.train_dataloader())
            assert [len(batch["x"]) for batch in batches] == [30] * 5
            seen += [number for batch in batches for number in numbers(batch)]
        assert sorted(seen) == list(range(300))


class TestBadInput:
    @pytest.mark.parametrize("labels", [True, False])
    def test_unknown_split(self, path, labels):
        with pytest.raises(UserError, match="no split 'holdout': it has train, val, test"):
            ImageDataset(Store(path), "holdout", labels=labels)

    def test_store(self, tmp_path):
        with pytest.raises(UserError, match="no store at"):
            ImageDataModule(tmp_path / "missing.h5")
        write_store(tmp_path / "audio.h5", domain="audio", spec={}, splits={"train": {"x": np.zeros(3)}})
        with pytest.raises(UserError, match="domain 'audio', not 'vision'"):
            ImageDataModule(tmp_path / "audio.h5")

    def test_settings_of_another_version(self, tmp_path):
        spec = SPEC.as_dict() | {"colour_space": "lab"}
        write_store(tmp_path / "s.h5", domain="vision", spec=spec, splits={"train": {"images": images(3)}})
        with pytest.raises(UserError, match="colour_space"):
            ImageDataModule(tmp_path / "s.h5")

    def test_fewer_images_than_a_batch(self, path):
        with pytest.raises(UserError, match="300 training examples, fewer than one batch of 301: lower batch_size"):
            ImageDataModule(path, batch_size=301).train_dataloader()

    @pytest.mark.parametrize("option", ["batch_size", "eval_batch_size", "limit"])
    def test_settings(self, path, option):
        with pytest.raises(UserError, match=f"{option} is 0"):
            ImageDataModule(path, **{option: 0})

    def test_workers(self, path):
        with pytest.raises(UserError, match="workers is -1"):
            ImageDataModule(path, workers=-1)


@pytest.mark.parametrize(("examples", "processes"), [(41, 1), (41, 2), (41, 3), (16, 3), (3, 4), (8, 2)])
def test_validation_batches_are_taken_in_turn_and_none_twice(examples, processes):
    shares = [list(BatchesInTurn(examples, 8, rank, processes)) for rank in range(processes)]
    assert {len(share) for share in shares} == {len(BatchesInTurn(examples, 8, 0, processes))}
    whole = [batch for turn in zip(*shares, strict=True) for batch in turn]
    filled = [batch for batch in whole if batch]
    assert filled == [list(range(start, min(start + 8, examples))) for start in range(0, examples, 8)]
    assert whole[: len(filled)] == filled  # those left over come last


def test_mirrored_images_follow_from_seed_epoch_and_image_alone(digits):
    dataset = ImageDataset(Store(digits), "train", flip=True, seed=3)
    count = len(dataset)
    whole = dataset.__getitems__(list(range(count)))["x"]
    for index in (5, 0, count - 1):
        assert torch.equal(dataset[index]["x"], whole[index])
    plain = ImageDataset(Store(digits), "train").__getitems__(list(range(count)))["x"]
    next_epoch = dataset.__getitems__(list(range(count, 2 * count)))["x"]
    for images in (whole, next_epoch):
        mirrored = ~(images == plain).flatten(1).all(1)
        assert 0.3 < mirrored.float().mean() < 0.7
        assert torch.equal(images[mirrored], plain[mirrored].flip(-1))
    assert not torch.equal(whole, next_epoch)
