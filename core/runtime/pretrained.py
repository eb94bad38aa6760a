"""Models as folders: ``config.json`` and ``model.safetensors``, nothing that can run code.

``SHA256SUMS`` beside them holds the checksums of what training or `Pretrained.save_pretrained` wrote, in the form of
the program sha256sum; `verify` compares.
"""

import hashlib
import inspect
import json
import re
import reprlib
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.runtime.limits import Header, TooLarge, check_arguments, limited_to
from arflows.core.runtime.machine import pick_device
from arflows.core.runtime.signatures import default_arguments

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FACTS_FILE = "training.json"
SUMS_FILE = "SHA256SUMS"
LARGEST_CONFIG = 4 << 20
"""Bytes of `CONFIG_FILE`."""

FORMAT_VERSION = 2
"""Version of `CONFIG_FILE`.

2: new names of weights, see `RENAMED`; splines have a limit of their steepness.
"""


def _without_slope(config: dict[str, Any]) -> dict[str, Any]:
    """Let splines of version 1 keep their shape, which had no limit of its steepness."""
    if config["class"] in ("NSF", "NSFC"):
        config = {**config, "arguments": {"slope": None, **config["arguments"]}}
    return config


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _without_slope}
"""Functions that turn a config of an older version into one of the next; none where nothing changed."""

RENAMED = {
    "enter": "input_proj",
    "leave": "output_proj",
    "merge": "out_proj",
    "expand": "fc1",
    "contract": "fc2",
    "row_leave": "row_output_proj",
    "of_type": "type_head",
    "of_bond": "bond_head",
    "place_embedding": "position_embedding",
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
"""Old and new names of modules and weights, as whole parts of a dotted name in a state dict."""


class Pretrained(nn.Module):
    """Module with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    The config holds the name of the class and the arguments of the constructor, including those passed on to a parent
    as ``**kwargs``; they must be plain JSON values. `from_pretrained` of a class loads folders of this class and of its
    subclasses only.

    Weights of older versions are loaded under their new names (`RENAMED`), also from states of training runs.
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments of the constructor."""
        instance = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        _, *given = signature.bind_partial(instance, *args, **kwargs).arguments.items()
        arguments = dict(default_arguments(cls))  # type: ignore[arg-type]  # mypy takes type[Self] for unhashable
        for name, value in given:
            passed_on = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            arguments.update(value if passed_on else {name: value})
        instance.__dict__["_arguments"] = arguments
        return instance

    def config(self) -> dict[str, Any]:
        """Return the JSON values from which `from_pretrained` builds the module, without its weights."""
        return {"format_version": FORMAT_VERSION, "class": type(self).__name__, "arguments": self._arguments}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take weights under the names of older versions too, from model folders and from states of training runs."""
        names = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
        older = {name for name in names if current_name(name) != name}
        for name in older and older - self.state_dict(keep_vars=True).keys():
            state_dict[prefix + current_name(name)] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def checksum(self) -> str:
        """SHA-256 of the config and the weights: the same for all copies of a model, wherever they lie."""
        digest = hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model into ``folder``, which is made where it does not exist.

        Both files are written under temporary names and then renamed, so that an interrupted save leaves the older
        model readable.

        Raises:
            UserError: If an argument of the constructor is not of the type of its annotation, or out of range (see
                `check_arguments`), so that the model could not be read again.
        """
        check_arguments(type(self), self._arguments)
        folder = Path(folder)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with replacing(folder / WEIGHTS_FILE) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        with replacing(folder / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(self.config(), indent=2) + "\n", encoding="utf-8")
        write_checksums(folder)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """Reads a model from a folder, or from the Hugging Face Hub by its name there; returned in evaluation mode.

        Args:
            source: folder written by `save_pretrained`, folder of a training run, or ``owner/name`` on the Hub.
            revision: branch, tag or commit on the Hub.

        Raises:
            UserError: if there is no such folder, a file of it is missing or damaged, it holds a model of another
                class or one larger than its weights, or it was written by a newer version of arflows.
        """
        folder = _local_folder(source, revision)
        config = _read_config(folder / CONFIG_FILE)
        model_class = cls._named(config["class"], folder)
        arguments, weights = config["arguments"], folder / WEIGHTS_FILE
        header = Header.read(weights)
        try:
            check_arguments(model_class, arguments)
            with limited_to(header):
                model = model_class(**arguments)
        except TooLarge as error:
            raise UserError(
                f"{folder / CONFIG_FILE} asks for a larger model than the {header.tensors:,} tensors of "
                f"{header.numbers:,} numbers in {weights}: copy the model folder again"
            ) from error
        except (UserError, ValueError) as error:
            details = " ".join(str(error).split())
            raise UserError(f"{folder / CONFIG_FILE}: arguments do not fit {config['class']}: {details}") from error
        except (TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
            given = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in arguments.items())
            raise UserError(
                f"{folder / CONFIG_FILE}: arguments do not fit {config['class']} or each other: {given}"
            ) from error
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{weights} is damaged or truncated ({error}): copy the model folder again") from error
        except RuntimeError as error:
            details = textwrap.shorten(str(error), 400, placeholder=" …")
            raise UserError(f"{weights} does not fit {CONFIG_FILE} beside it: {details}") from error
        return model.eval()

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads the model to the Hugging Face Hub as ``owner/name`` and returns the address of the commit.

        Args:
            name: The repository, ``owner/name``; created if it does not exist.
            private: Create a private repository; an existing one stays as it is.
            token: The access token; None for that of the local login.
        """
        api = HfApi(token=token)
        api.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=name, folder_path=folder))

    @classmethod
    def _named(cls, name: str, folder: Path) -> type[Self]:
        """This class or a subclass, by its name; nothing else is ever constructed."""
        known: dict[str, type[Self]] = {}
        pending = [cls]
        while pending:
            candidate = pending.pop()
            if not candidate.__name__.startswith("_"):
                known[candidate.__name__] = candidate
            pending.extend(candidate.__subclasses__())
        if name not in known:
            raise UserError(f"{folder} holds a model of class {name!r}, not {' or '.join(sorted(known))}")
        return known[name]


def current_name(name: str) -> str:
    """Return the name that a weight has now.

    >>> current_name("bijection.conditioner.enter.parametrizations.weight.original0")
    'bijection.conditioner.input_proj.weight_g'
    """
    return _OLD_NAME.sub(lambda match: RENAMED[match[0]], name)


_OLD_NAME = re.compile(rf"(?<![^.])({'|'.join(map(re.escape, RENAMED))})(?![^.])")


def write_checksums(folder: Path) -> None:
    """Writes `SUMS_FILE` for the files of a model folder."""
    present = [folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, FACTS_FILE) if (folder / name).is_file()]
    with replacing(folder / SUMS_FILE) as temporary:
        temporary.write_text("".join(f"{_sha256(path)}  {path.name}\n" for path in present), encoding="utf-8")


def verify(path: Path) -> str | None:
    """Reads every byte of a model folder, or of the one in a run's folder, and compares it with its checksum.

    Returns:
        Description of the verified data; None if the path is not a model folder.

    Raises:
        UserError: If something differs or is missing; the sentence names each damaged file.
    """
    folder = Path(model_folder(str(path)))
    sums = folder / SUMS_FILE
    if not (folder / CONFIG_FILE).is_file() and not sums.is_file():
        return None
    if not sums.is_file():
        raise UserError(f"{folder} has no {SUMS_FILE}, as older models have none: load it and save it again.")
    recorded = re.findall(
        r"^([0-9a-f]{64})  ([\w.-]+)$", sums.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    if not {CONFIG_FILE, WEIGHTS_FILE} <= {name for _, name in recorded}:
        raise UserError(f"{sums} is damaged: copy the model folder again.")
    damaged = [name for sha256, name in recorded if not (folder / name).is_file() or _sha256(folder / name) != sha256]
    if damaged:
        raise UserError(f"{folder} is damaged in {', '.join(damaged)}: copy the model folder again.")
    return f"{folder}: a model, {len(recorded)} files"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Model = TypeVar("Model", bound=Pretrained)


def load_model(kind: type[Model], model: str, device: str = "auto") -> Model:
    """Loads a trained model, ready to use.

    Args:
        kind: Its class, or one that it is a subclass of.
        model: A model folder, the folder of a training run, or a name on the Hugging Face Hub.
        device: Where to compute, as `pick_device` takes it.

    Raises:
        UserError: If there is no such model or device, or the model's files are damaged.
    """
    return kind.from_pretrained(model).to(pick_device(device)).eval()


def model_folder(model: str) -> str:
    """The folder of a model: as given, or ``model`` inside the folder of a training run."""
    inside = Path(model) / "model"
    return str(inside) if (inside / CONFIG_FILE).is_file() else model


def training_facts(model: str | Path) -> dict[str, Any] | None:
    """Read the facts about its training that ``train`` leaves with a model; None if there are none.

    Args:
        model: A model folder, the folder of a training run, or a name on the Hugging Face Hub.

    Raises:
        UserError: If the file is damaged.
    """
    path = _local_folder(model, None) / FACTS_FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): copy the model folder again.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged: copy the model folder again.")
    return facts


def _local_folder(source: str | Path, revision: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return Path(model_folder(str(folder)))
    if folder.exists():
        raise UserError(f"{folder} is a file: give the model folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    looks_like_hub_name = isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if not looks_like_hub_name or folder.parent.is_dir():
        raise UserError(f"no model folder {folder}: check the path, or train one first")
    try:
        return Path(
            snapshot_download(
                str(source), revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, SUMS_FILE, FACTS_FILE]
            )
        )
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"no folder {source}, and no model of that name could be fetched from the Hugging Face Hub "
            f"({type(error).__name__}): check the path, the name or the connection"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: {path.parent} is not a model folder")
    if path.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, a config at most {LARGEST_CONFIG:,}: copy it again")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers of very many digits
        raise UserError(f"{path} is not valid JSON ({error}): copy the model folder again") from error
    expected = {"format_version": int, "class": str, "arguments": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in expected.items()):
        raise UserError(f"{path} is not an arflows config: it needs {', '.join(expected)}")
    if config["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {config['format_version']}, this arflows reads up to {FORMAT_VERSION}: "
            "install a newer arflows"
        )
    version = config["format_version"]
    if version < 1:
        raise UserError(f"{path} has format version {version}, which never existed: copy the model again")
    for older in range(version, FORMAT_VERSION):
        config = MIGRATIONS.get(older, dict)(config)
    return config
