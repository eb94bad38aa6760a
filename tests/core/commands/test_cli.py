import importlib
import json
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import pytest

from arflows.core.commands import cli, domains, recipes
from arflows.core.commands.domains import Domain
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.option_types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from arflows.core.runtime.options import renamed


def draw(data: Path, *, count: int = 3, kind: Literal["grid", "single"] = "grid", scale: float | None = None) -> dict:
    """Draw something
    from the data.

    Not a part of the help.

    Args:
        data: where it comes from.
        count: how many.
        kind: what is drawn.
        scale: how large.
    """
    return {"data": data, "count": count, "kind": kind, "scale": scale}


@pytest.fixture
def spare(monkeypatch):
    """The only domain, with a verb that takes words and keeps what it was called with."""
    calls = []
    domain = Domain("spare", "a domain of the tests", "spare_domain", {"draw": "draw something"})
    verb = types.ModuleType("spare_domain.draw")
    verb.draw = lambda *words: calls.append(list(words))
    monkeypatch.setitem(sys.modules, "spare_domain", types.ModuleType("spare_domain"))
    monkeypatch.setitem(sys.modules, "spare_domain.draw", verb)
    point = types.SimpleNamespace(name="spare", dist=None, module="spare_domain", load=lambda: domain)
    monkeypatch.setattr(domains, "entry_points", lambda group: [point])
    monkeypatch.setattr(cli, "recipes_of", lambda package: {})
    return calls


class TestDispatch:
    def test_a_verb_gets_the_words_after_it(self, spare):
        cli.main(["spare", "draw", "--count", "3"])
        assert spare == [["--count", "3"]]

    @pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
    def test_help_lists_domains_and_commands(self, spare, capsys, words):
        cli.main(words)
        output = capsys.readouterr().out
        assert "spare        a domain of the tests" in output
        assert "demo " in output

    def test_help_of_a_domain_lists_its_verbs(self, spare, capsys):
        cli.main(["spare", "--help"])
        assert "draw         draw something" in capsys.readouterr().out
        assert spare == []

    @pytest.mark.report
    def test_help_of_a_domain_lists_its_recipes(self, spare, capsys, monkeypatch):
        monkeypatch.setattr(cli, "recipes_of", lambda package: {"small_spare": f"a recipe of {package}"})
        cli.main(["spare", "--help"])
        assert "recipes for --config:\n  small_spare  a recipe of spare_domain\n" in capsys.readouterr().out

    @pytest.mark.report
    def test_help_may_come_first(self, spare, capsys):
        cli.main(["help", "spare"])
        assert "draw         draw something" in capsys.readouterr().out
        cli.main(["help", "spare", "draw"])
        assert spare == [["--help"]]

    @pytest.mark.parametrize("words", [[], ["spare"]])
    def test_without_a_verb_the_help_is_an_error(self, spare, capsys, words):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("usage: ")

    @pytest.mark.report
    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (
                ["sprae"],
                "error: There is no domain or command 'sprae'. Did you mean spare? There is: spare, demo, rep",
            ),
            (
                ["dmeo"],
                "error: There is no domain or command 'dmeo'. Did you mean demo? There is: spare, demo, rep",
            ),
            (["draw", "spare"], "error: The domain comes before the verb: arflows spare draw."),
            (["spare", "drwa"], "error: There is no verb of spare 'drwa'. Did you mean draw? There is: draw."),
            (["--versoin"], "error: There is no option --versoin before a domain; see `arflows --help`."),
            (["spare", "--count=3"], "error: There is no option --count before a verb; see `arflows spare --help`."),
        ],
    )
    def test_wrong_words_are_one_sentence(self, spare, fails, words, sentence):
        assert fails(2, cli.main, words).startswith(sentence)

    def test_version_is_that_of_the_package(self, capsys):
        cli.main(["--version"])
        assert capsys.readouterr().out == f"arflows {importlib.metadata.version('arflows')}\n"

    def test_error_of_a_verb_is_handled_once(self, spare, fails, monkeypatch):
        def draw():
            raise UserError("Mend this.")

        monkeypatch.setattr(sys.modules["spare_domain.draw"], "draw", draw)
        assert fails(2, cli.main, ["spare", "draw"]) == "error: Mend this.\n"

    def test_every_command_of_the_list_exists(self):
        for command in cli.COMMANDS:
            assert callable(getattr(importlib.import_module(f"arflows.core.commands.{command}"), command))

    def test_options_of_a_verb_are_made_of_its_function(self, spare, monkeypatch, fails):
        monkeypatch.setattr(sys.modules["spare_domain.draw"], "draw", draw)
        cli.main(["spare", "draw", "--data", "a.h5"])
        assert fails(2, cli.main, ["spare", "draw", "--data"]).endswith(
            "`arflows spare draw --help` lists the options.\n"
        )

    @pytest.mark.report
    def test_a_command_takes_its_first_option_as_a_word(self, capsys, fails):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["verify", "--help"])
        assert re.search(r"usage: arflows verify .* path\n", capsys.readouterr().out)
        assert fails(2, cli.main, ["verify", "nowhere"]) == "error: there is no nowhere: check the path.\n"


class TestRun:
    def test_options_come_from_the_signature(self):
        result = cli.run(draw, ["--data", "a.h5", "--kind=single", "--scale", "2"])
        assert result == {"data": Path("a.h5"), "count": 3, "kind": "single", "scale": 2.0}

    @pytest.mark.parametrize(
        ("words", "expected"),
        [([], False), (["--again"], True), (["--again", "true"], True), (["--again=false"], False)],
    )
    def test_a_switch_needs_no_value(self, words, expected):
        def play(tune: str, again: bool = False) -> tuple[str, bool]:
            return tune, again

        for where in ([*words, "--tune", "la"], ["--tune", "la", *words]):
            assert cli.run(play, where) == ("la", expected)

    def test_words_of_the_process_are_the_default(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["draw", "--data=a.h5", "--debug"])
        assert cli.run(draw)["data"] == Path("a.h5")

    def test_command_line_takes_precedence_over_the_config(self, tmp_path):
        config = tmp_path / "draw.yaml"
        config.write_text("data: a.h5\ncount: 5\nscale: 1\n")
        result = cli.run(draw, ["--config", str(config), "--count", "7"])
        assert result == {"data": Path("a.h5"), "count": 7, "kind": "grid", "scale": 1.0}

    def test_printed_config_can_be_read_again(self, tmp_path, capsys):
        words = ["--data=a.h5", "--count=9", "--kind=single"]
        with pytest.raises(SystemExit, match="0"):
            cli.run(draw, [*words, "--print_config"])
        config = tmp_path / "draw.yaml"
        config.write_text(capsys.readouterr().out)
        assert cli.run(draw, ["--config", str(config)]) == cli.run(draw, words)

    def test_help_is_made_of_the_docstring(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            cli.run(draw, ["--help"])
        output = " ".join(capsys.readouterr().out.split())
        assert re.search(r"usage: draw \[(-h\]|--config)", output)
        assert "Draw something from the data." in output
        assert "--data DATA where it comes from. (required, type: Path)" in output
        assert "Not a part of the help" not in output

    @pytest.mark.report
    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["--data=a", "--count=many"], "--count takes int, not 'many'."),
            (["--data=a", "--scale=wide"], "--scale takes float or null, not 'wide'."),
            (["--data=a", "--kind=heap"], "--kind takes 'grid' or 'single', not 'heap'."),
            ([], "Missing --data. `draw --help` lists the options."),
            (["--data"], "--data needs a value. `draw --help` lists the options."),
            (["--data=a", "--cuont=3"], "There is no option '--cuont'. Did you mean --count? `draw --help` lists"),
            (["--data=a", "--coun=3"], "There is no option '--coun'. Did you mean --count? `draw --help` lists"),
            (["a.h5"], "Unexpected 'a.h5': options are written as --name value. `draw --help` lists the options."),
            (["--config=missing.yaml"], "--config: File does not exist:"),
        ],
    )
    def test_wrong_option_is_one_sentence(self, fails, words, sentence):
        assert fails(2, cli.run, draw, words, "draw").startswith(f"error: {sentence}")

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["--number=0"], "--number takes a whole number from 1 up, not '0'."),
            (["--number=-3"], "--number takes a whole number from 1 up, not '-3'."),
            (["--number=2.5"], "--number takes a whole number from 1 up, not '2.5'."),
            (["--number=many"], "--number takes a whole number from 1 up, not 'many'."),
            (["--least=-1"], "--least takes a whole number from 0 up, not '-1'."),
            (["--length=0"], "--length takes a number above 0, not '0'."),
            (["--length=wide"], "--length takes a number above 0, not 'wide'."),
            (["--weight=-0.5"], "--weight takes a number from 0 up, not '-0.5'."),
            (["--part=1"], "--part takes a number from 0 up to, not including, 1, not '1'."),
            (["--limit=0"], "--limit takes a whole number from 1 up or null, not '0'."),
        ],
    )
    def test_number_out_of_range_is_one_sentence(self, fails, words, sentence):
        def measure(
            number: PositiveInt = 1,
            least: NonNegativeInt = 0,
            length: PositiveFloat = 1.0,
            weight: NonNegativeFloat = 0.0,
            part: Fraction = 0.5,
            limit: PositiveInt | None = None,
        ) -> None: ...

        assert fails(2, cli.run, measure, words) == f"error: {sentence}\n"

    def test_numbers_in_range_are_numbers(self):
        def measure(number: PositiveInt = 1, part: Fraction = 0.5, limit: PositiveInt | None = None) -> list:
            return [number, part, limit]

        found = cli.run(measure, ["--number=3", "--part=0", "--limit=2"])
        assert found == [3, 0.0, 2]
        assert json.loads(json.dumps(found)) == pickle.loads(pickle.dumps(found)) == found

    @pytest.mark.report
    @pytest.mark.parametrize("where", ["words", "config"])
    def test_an_old_option_is_told_its_new_name(self, fails, tmp_path, where):
        config = tmp_path / "draw.yaml"
        config.write_text("size: 3\n")
        words = ["--size", "3"] if where == "words" else ["--config", str(config)]

        @renamed(size="scale")
        def draw(scale: int = 1) -> None: ...

        assert "--size is now --scale." in fails(2, cli.run, draw, words)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("data: a\ncount: many\n", "{config}: --count takes int, not 'many'."),
            ("data: a\ncuont: 3\n", "There is no option '--cuont'. Did you mean --count?"),
            ("data: [a\n", "{config} is no YAML (while parsing"),
            ("\x00", "{config} is no YAML (unacceptable character"),
        ],
    )
    def test_wrong_config_is_one_sentence(self, fails, tmp_path, text, sentence):
        config = tmp_path / "draw.yaml"
        config.write_text(text)
        message = fails(2, cli.run, draw, [f"--config={config}"], "draw")
        assert message.startswith(f"error: {sentence.format(config=config)}")


class TestRecipes:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        recipes = tmp_path / "spare_package" / "recipes"
        recipes.mkdir(parents=True)
        (recipes.parent / "__init__.py").touch()
        (recipes / "small.yaml").touch()
        (recipes / "large.yaml").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        yield "spare_package"
        sys.modules.pop("spare_package", None)

    def test_recipe_by_name(self, package, tmp_path):
        assert recipes.resolve_recipe("small", package) == tmp_path / "spare_package/recipes/small.yaml"

    def test_file_goes_before_recipe(self, package, tmp_path):
        (tmp_path / "small").touch()
        assert recipes.resolve_recipe("small", package) == Path("small")

    @pytest.mark.parametrize("name", ["smal", "smal.yaml", "elsewhere/small.yaml"])
    def test_wrong_name_lists_the_recipes(self, package, name):
        with pytest.raises(UserError, match=f"no file or recipe '{name}'.*There is: large, small"):
            recipes.resolve_recipe(name, package)

    @pytest.mark.parametrize("words", [["--config", "small"], ["-c", "small"], ["--config=small"]])
    def test_configs_of_a_command_line(self, package, tmp_path, words):
        resolved = recipes.resolve_configs(["--a", "small", *words, "--config", "large", "small"], package)
        assert " ".join(resolved).replace("=", " ").split()[2:] == [
            words[0].partition("=")[0],
            f"{tmp_path}/spare_package/recipes/small.yaml",
            "--config",
            f"{tmp_path}/spare_package/recipes/large.yaml",
            "small",
        ]

    def test_every_recipe_is_told_with_the_first_sentence_of_its_comment(self, package, tmp_path):
        recipe = tmp_path / "spare_package/recipes/small.yaml"
        recipe.write_text("# A small model on\n# little data (2.5 MB); seconds.\n#\n# More.\nout: runs\n# late\n")
        assert recipes.recipes_of(package) == {"large": "", "small": "A small model on little data (2.5 MB)"}

    def test_config_without_a_value_is_left_to_the_parser(self, package):
        assert recipes.resolve_configs(["--config"], package) == ["--config"]


ARFLOWS = Path(sys.executable).with_name("arflows")


def test_console_script():
    done = subprocess.run([ARFLOWS, "visoin"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no domain or command 'visoin'. Did you mean vision?")


@pytest.mark.report
def test_python_m_is_the_same():
    done = subprocess.run([sys.executable, "-m", "arflows.core.commands.cli", "visoin"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no domain or command 'visoin'. Did you mean vision?")
