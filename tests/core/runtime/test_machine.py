import platform

import pytest
import torch

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.machine import hardware, pick_device, software


def test_auto_takes_what_there_is():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device().type == expected
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:77", "nonsense"])
def test_a_device_that_is_not_there_is_named_beside_those_that_are(name):
    with pytest.raises(UserError, match=rf"'{name}' .* cpu"):
        pick_device(name)


def test_results_say_what_they_were_made_with():
    made_with = software()
    assert made_with["torch"] == torch.__version__
    assert made_with["python"] == platform.python_version()
    commit = made_with["commit"]
    assert commit is None or len(commit.removesuffix("+changes")) == 40
    assert hardware(torch.device("cpu"))["threads"] == torch.get_num_threads()
