"""One training run in one folder: options, logs, checkpoints, resuming, and the model at the end.

A run's folder holds::

    config.yaml          every option as it was resolved
    logs/                TensorBoard events, and metrics.csv in version_0, version_1, … for each time it was resumed
    checkpoints/         last.ckpt to resume from, last-1.ckpt should it be damaged; best.ckpt with the lowest
                         validation loss
    model/               the trained model: config.json, model.safetensors, and training.json with how it came about

A resumed run gives the same result as an uninterrupted one, also within an epoch: the datamodule's state records the
remaining batches of the epoch.
"""

import json
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from arflows.core.bijections import mark_initialized
from arflows.core.flow import Flow
from arflows.core.likelihood import Batch, Estimate, Reference, bits_per_dim, dequantization, log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.runtime.machine import hardware, software
from arflows.core.runtime.noise import fixed_noise
from arflows.core.runtime.pretrained import FACTS_FILE, training_facts, write_checksums
from arflows.core.runtime.processes import destroy_process_group_on_exit
from arflows.core.training.checkpoints import (
    LAST,
    CheckpointFiles,
    RunCheckpoint,
    newest_sound,
    read_checkpoint,
    resumable,
)
from arflows.core.training.lightning_compat import ProgressLine, SeededCLI
from arflows.core.training.module import FlowTraining
from arflows.core.training.parser import TrainingParser, allow_known_classes
from arflows.core.training.sharding import is_sharded
from arflows.core.training.start import OPTION, Start, name_of_start

REFERENCE_SIZE = 2000
"""Training examples whose scores are kept with the model."""


class Experiment(SeededCLI):
    """The ``train`` verb of a domain: options from the signatures of model, datamodule and Trainer, and one run.

    Args:
        model_class: Class of the training module; the type of its ``flow`` argument limits the models in a config.
        datamodule_class: Class of the datamodule, with an argument ``store``: the path of a store.
        words: The command line.
        domain: The domain's name on the command line.
        callbacks: Callbacks of the domain, such as pictures of samples.
    """

    def __init__(
        self,
        model_class: type[FlowTraining],
        datamodule_class: type[LightningDataModule],
        words: Sequence[str],
        domain: str,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.domain = domain
        self._words = list(words)
        self.start: Start | None = None
        self._flow_class: type[Flow] = get_type_hints(model_class.__init__)["flow"]
        self.domain_callbacks = list(callbacks)
        allow_known_classes()
        super().__init__(
            model_class,
            datamodule_class,
            save_config_callback=None,
            trainer_defaults={
                "max_epochs": 100,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 1,
                "use_distributed_sampler": False,  # the datamodule distributes batches without repeating examples
                "enable_model_summary": False,
            },
            parser_kwargs={"prog": f"arflows {domain} train", "description": "Train a flow by maximum likelihood."},
            parser_class=TrainingParser,
            args=list(words),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ------------------------------------------------------------------------------------------ options

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the run as a whole."""
        parser.add_argument("--out", type=Path, required=True, help="Folder of the run.")
        parser.add_argument("--seed", type=int, default=0, help="Seed of initial weights, data order and noise.")
        parser.add_argument(
            OPTION,
            type=str | None,
            default=None,
            help="Start from this trained model, whose architecture, standardisation and names are kept.",
        )
        parser.add_argument("--resume", type=bool, default=False, help="Resume the run in --out from its last state.")
        parser.add_argument(
            "--save_every",
            type=PositiveInt | None,
            default=None,
            help="Also save the state to resume from after every so many steps, not only after validation.",
        )
        parser.add_argument("--keep", type=PositiveInt, default=2, help="Number of newest states that are kept.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the seed of the data to that of the run."""
        parser.link_arguments("seed", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the given words; the architecture is that of the model to start from, if any."""
        name = name_of_start(self._words)  # a domain may add to the words
        if name is not None:
            self.start = Start.load(name, self._flow_class)
            parser.set_defaults({"model.flow": self.start.options})
        self.config = parser.parse_args(args)
        name = self.config["from"]
        if self.start is None and name is not None and not self.config.resume:  # named by a config file
            self.start = Start.load(name, self._flow_class)
        if self.start is not None:
            options = self.start.options
            self.config.model.flow = Namespace(
                class_path=options["class_path"], init_args=Namespace(**options["init_args"])
            )

    def seed_generators(self) -> None:
        """Seed all random generators by ``--seed``."""
        seed_everything(self.config.seed, workers=True, verbose=False)

    # ------------------------------------------------------------------------------------------ the run's folder

    @property
    def out(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    @property
    def checkpoints(self) -> Path:
        """Folder of the states to resume from."""
        return self.out / "checkpoints"

    @property
    def model_folder(self) -> Path:
        """Folder of the trained model."""
        return self.out / "model"

    def before_instantiate_classes(self) -> None:
        """Refuses to overwrite a run, to resume a folder without a run, and to train on a missing store.

        Only the main process checks the folder: it may have written to it before the others of a distributed run check.
        """
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._resume_or_refuse()
        self.require_store(self.config.data.store)

    def require_store(self, store: Path) -> None:
        """Make sure that the store exists.

        Raises:
            UserError: If it is missing.
        """
        if not store.exists():
            raise UserError(
                f"there is no store {store}: make it by `arflows {self.domain} prepare --source … --out {store}`, or "
                "give another --data.store."
            )

    def after_instantiate_classes(self) -> None:
        """Lets the domain check that model and data fit."""
        if is_sharded(self.trainer) and self.model.ema_decay:
            raise UserError("FSDP does not shard the moving average of the weights: add --model.ema_decay 0.")
        if self.start is not None:
            self.model.flow.load_state_dict(self.start.flow.state_dict())
            mark_initialized(self.model.flow)
        self.check()

    def remedy(self, settings: str) -> str:
        """Return the advice for a store that does not fit the model.

        Args:
            settings: Options of the architecture that would have to change; those of a model to start from are kept.
        """
        if self.start is not None:
            return f"prepare a store with the settings of {self.start.name}, or train without {OPTION}"
        return f"set {settings} accordingly, or prepare another store"

    def check(self) -> None:
        """Raises `UserError` if ``self.model`` and ``self.datamodule`` do not fit; domains override it."""

    def data_facts(self) -> dict[str, Any]:
        """Facts about the training data, in JSON values; domains override it."""
        return {}

    def _resume_or_refuse(self) -> None:
        started, finished = bool(resumable(self.checkpoints)), (self.model_folder / FACTS_FILE).is_file()
        if not self.config.resume:
            if started or finished:
                state = "a finished run" if finished else "a run that was interrupted"
                raise UserError(f"{self.out} holds {state}: choose another --out, or go on with it by --resume.")
            return
        if not started:
            raise UserError(
                f"{self.out} holds nothing to resume, for {self.checkpoints / LAST} is missing: leave out --resume."
            )
        saved = self.out / "config.yaml"
        differences = _differences(self._options()["model"], self._saved_options(saved)["model"], "model")
        if differences:
            raise UserError(
                f"{self.out} was started with other settings, now ≠ then: {'; '.join(differences)}; give the same, "
                f"or --config {saved}, or another --out."
            )
        if finished and self.config.trainer.max_epochs is not None and self.config.trainer.max_steps == -1:
            epochs = (training_facts(self.model_folder) or {})["epochs"]
            if 0 <= self.config.trainer.max_epochs <= epochs:
                raise UserError(
                    f"{self.out} is finished after {epochs} epochs: to train on, raise --trainer.max_epochs above that."
                )

    def _saved_options(self, path: Path) -> dict[str, Any]:
        """The options of a run as this version of arflows reads them; options that are newer have their defaults.

        Raises:
            UserError: If the file is damaged, or has options that this version does not know.
        """
        try:
            saved = yaml.safe_load(path.read_text(encoding="utf-8"))
            given = {**saved, "out": str(self.out), "data": yaml.safe_load(self.parser.dump(self.config))["data"]}
            options: dict[str, Any] = yaml.safe_load(self.parser.dump(self.parser.parse_object(given), skip_none=False))
        except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is damaged ({' '.join(str(error).split())}): give the run's recipe by --config and "
                "another --out."
            ) from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return options

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return options

    def _save_options(self) -> None:
        with replacing(self.out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump({**self._options(), "resume": False}, sort_keys=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the run's loggers and checkpoints."""
        monitor = f"val/{self.model.unit}"
        self.trainer_defaults["callbacks"] = [
            *self.domain_callbacks,
            RunCheckpoint(self.checkpoints, "best", monitor=monitor, mode="min"),
            RunCheckpoint(self.checkpoints, "last", self.config.keep, self.config.save_every, save_on_exception=True),
        ]
        given = self.config_init.trainer.callbacks
        has_bar = any(isinstance(c, ProgressBar) for c in (given if isinstance(given, list) else [given]))
        wanted = self.config.trainer.enable_progress_bar
        if wanted is None:  # a progress bar would fill a log file
            wanted = kwargs["enable_progress_bar"] = has_bar or (sys.stdout.isatty() and sys.stderr.isatty())
        if wanted and not has_bar:
            # Where rich is installed, Lightning's own choice is a bar that shows "Epoch 0/-2" if max_epochs is -1.
            self.trainer_defaults["callbacks"].append(ProgressLine())
        if self.config.trainer.logger in (None, True):
            logs = self.out / "logs"
            kwargs["logger"] = [TensorBoardLogger(logs, name="", version=""), CSVLogger(logs, name="")]
        plugins = self.config_init.trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), CheckpointFiles()]
        try:
            return super().instantiate_trainer(default_root_dir=self.out, **kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise UserError(" ".join(str(error).split())) from error

    # ------------------------------------------------------------------------------------------ the run itself

    def fit(self) -> None:
        """Trains, then exports the best weights.

        Raises:
            KeyboardInterrupt: After Ctrl-C, with the last state saved.
            UserError: If training cannot go on, or the Trainer's options do not fit together.
        """
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._software = software()  # recorded now: the installation may be updated before training ends
        if self.trainer.is_global_zero:
            self._save_options()
            print(
                f"training {self._describe_model()} on {self.trainer.strategy.root_device}; everything is in {self.out}"
            )
        start = newest_sound(self.checkpoints, self._warn) if self.config.resume else None
        try:
            with destroy_process_group_on_exit():
                self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=start, weights_only=True)
        except OSError as error:  # Lightning's writers do not name the file
            error.filename = error.filename or str(self.out)
            raise
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit as ending:  # raised by Lightning after Ctrl-C
            if self.trainer.is_global_zero and (self.checkpoints / LAST).is_file():
                print(f"{self.checkpoints / LAST} is saved; add --resume to go on from it.", file=sys.stderr)
            raise KeyboardInterrupt from ending
        finally:  # Lightning leaves its own handlers after an early interrupt or a failed save
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.trainer.is_global_zero:
            self._export()

    def _warn(self, sentence: str) -> None:
        if self.trainer.is_global_zero:
            print(f"warning: {sentence}", file=sys.stderr)

    def _describe_model(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.flow.parameters())
        return f"{type(self.model.flow).__name__} with {parameters:,} parameters"

    def _export(self) -> None:
        """Writes the best weights (their moving average, if there is one) and facts about them as a model folder."""
        checkpoints = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint)]
        path = next((c.best_model_path for c in checkpoints if c.best_model_path), None)
        if path is None:
            print("A trial run (--trainer.fast_dev_run) writes no model.")
            return
        weights = read_checkpoint(Path(path))["state_dict"]
        if is_sharded(self.trainer):  # this process has only a part of the weights
            self.model.flow = type(self.model.flow)(**self.model.flow.config()["arguments"])
        flow = self.model.flow
        flow.load_state_dict({name.removeprefix("flow."): w for name, w in weights.items() if name.startswith("flow.")})
        device = self.trainer.strategy.root_device
        flow.to(device)
        figure = self._validation_figure()
        facts = {
            "val": figure.as_dict() if figure else None,
            "epochs": self.trainer.current_epoch,
            "steps": self.trainer.global_step,
            "skipped_steps": self.model.skipped_steps,
            "seconds": round(self.model.seconds, 1),
            "seed": self.config.seed,
            "from": self.config["from"],
            "data": self.data_facts(),
            "software": self._software,
            "hardware": {**hardware(device), "processes": self.trainer.world_size},
            "train_scores": self._reference().as_dict(),
        }
        flow.cpu().save_pretrained(self.model_folder)
        with replacing(self.model_folder / FACTS_FILE) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
        write_checksums(self.model_folder)
        print(f"{self.model_folder} is the trained model" + (f": {figure} of the validation split." if figure else "."))

    def _validation_figure(self) -> Estimate | None:
        flow = self.model.flow
        scores = log_probs(flow, tqdm(self.datamodule.val_dataloader(), "validating", leave=False, disable=None))
        dims = flow.dims if self.model.unit == "bits_per_dim" else None
        return Estimate.of(scores, dims, flow.likelihood, dequantization(flow)) if len(scores) else None

    def _reference(self) -> Reference:
        """Scores of a random sample of the training data."""
        flow = self.model.flow
        with fixed_noise(self.config.seed, torch.device("cpu")):
            batches = tqdm(self.datamodule.train_dataloader(), "scoring training data", leave=False, disable=None)
            scores = log_probs(flow, _up_to(batches, REFERENCE_SIZE))
        return Reference.of(bits_per_dim(scores, flow.dims) if self.model.unit == "bits_per_dim" else -scores)


def _differences(now: Any, then: Any, name: str) -> list[str]:
    """Describe each setting that differs between two nested dictionaries, with both values."""
    if isinstance(now, dict) and isinstance(then, dict):
        keys = [*now, *(key for key in then if key not in now)]
        return [line for key in keys for line in _differences(now.get(key), then.get(key), f"{name}.{key}")]
    return [] if now == then else [f"{name} {now} ≠ {then}"]


def _up_to(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yields batches until they hold ``count`` examples; the last one is cut."""
    for batch in batches:
        yield {name: tensor[:count] for name, tensor in batch.items()}
        count -= len(batch["x"])
        if count <= 0:
            return
