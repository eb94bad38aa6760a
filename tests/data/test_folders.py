import pytest

from arflows.data.folders import FileNames


@pytest.mark.report
def test_no_two_examples_get_one_file_name():
    names = FileNames((".wav",))
    given = ["spk.0", "spk.1", "a/b.wav", "a_b", "A_B.WAV", ".wav"]
    assert list(map(names, given)) == ["spk.0", "spk.1", "a_b", "a_b-2", "A_B-3", "example"]
