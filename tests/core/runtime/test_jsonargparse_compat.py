"""Assumptions about jsonargparse's private API; tests/core/commands/test_cli.py checks its messages."""

from jsonargparse import ArgumentParser

from arflows.core.runtime.jsonargparse_compat import let_switches_stand_alone, option_names, parse_unchecked


def test_options_have_names():
    parser = ArgumentParser()
    parser.add_argument("--count", "-c", type=int)
    assert {"--count", "-c", "--help"} <= set(option_names(parser))


def test_switches_stand_alone_and_take_values():
    parser = ArgumentParser()
    parser.add_argument("--again", type=bool, default=False)
    parser.add_argument("--count", type=int, default=1)
    let_switches_stand_alone(parser)
    assert [parser.parse_args(words).again for words in ([], ["--again"], ["--again", "false"])] == [False, True, False]


def test_what_is_missing_is_none():
    class Flow:
        def __init__(self, features: int, context: int = 0) -> None: ...

    parser = ArgumentParser()
    parser.add_argument("--store", type=str, required=True)
    parser.add_class_arguments(Flow, "flow")
    found = parse_unchecked(parser, ["--flow.context", "3"])
    assert (found.store, found.flow.features, found.flow.context) == (None, None, 3)
