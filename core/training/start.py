"""Training that starts from a trained model: ``train --from MODEL``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arflows.core.flow import Flow
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained, model_folder, training_facts

OPTION = "--from"


@dataclass(frozen=True)
class Start:
    """Model that training starts from: its architecture, weights, standardisation and names are kept.

    Attributes:
        name: The folder or name that the user gave.
        flow: The model.
        data: Facts about the data that it was trained on, from ``training.json``; empty if there is none.
    """

    name: str
    flow: Flow
    data: dict[str, Any]

    @classmethod
    def load(cls, name: str, kind: type[Flow]) -> "Start":
        """Read a model.

        Args:
            name: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
            kind: Class that the model must be of, or of a subclass of it.

        Raises:
            UserError: If there is no such model, or its files are damaged.
        """
        assert issubclass(kind, Pretrained)
        folder = model_folder(name)
        flow = kind.from_pretrained(folder)
        return cls(name, flow, (training_facts(folder) or {}).get("data", {}))

    @property
    def options(self) -> dict[str, Any]:
        """Class and arguments of the model, as a config has them under ``model.flow``."""
        assert isinstance(self.flow, Pretrained)
        kind = type(self.flow)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": self.flow.config()["arguments"]}


def name_of_start(words: Sequence[str]) -> str | None:
    """Return the value of ``--from`` on a command line; None if it is not there.

    Raises:
        UserError: If an architecture is given beside it.

    >>> name_of_start(["--out", "runs/b", "--from", "runs/a"])
    'runs/a'
    """
    name = None
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == OPTION:
            name = value if equals else next(iter(words[index + 1 :]), None)
    flow = [word for word in words if word.startswith("--model.flow")]
    if name is not None and flow:
        raise UserError(f"{OPTION} keeps the architecture of {name}: leave out {flow[0].partition('=')[0]}.")
    return name
