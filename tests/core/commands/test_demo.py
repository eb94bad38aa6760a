import sys
import types
from pathlib import Path

import pytest

from arflows.core.commands import demo as demo_module
from arflows.core.commands.cli import main
from arflows.core.commands.domains import Domain
from arflows.core.commands.report import Chapter, Paragraph
from arflows.core.runtime.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Puts domains in place whose chapter is made by the given functions, and works in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def domains(**chapters):
        installed = []
        for name, chapter in chapters.items():
            for module in (name, f"{name}.demo"):
                monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
            sys.modules[f"{name}.demo"].chapter = chapter
            installed.append(Domain(name, f"the {name}", name, {}))
        monkeypatch.setattr(demo_module, "all_domains", lambda: installed)

    return domains


def works(out, seed):
    out.mkdir(parents=True)
    (out / "samples.txt").write_text(str(seed))
    return Chapter("It works", "As it should.", [Paragraph(f"with seed {seed}")])


def fails(out, seed):
    raise RuntimeError("no luck")


def interrupted(out, seed):
    raise KeyboardInterrupt


def test_every_domain_has_its_chapter_and_folder(install, tmp_path, capsys):
    install(first_spare=works, second_spare=works)
    main(["demo", "--seed", "3", "--out", "here"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("with seed 3") == 2
    assert (tmp_path / "here/first_spare/samples.txt").read_text() == "3"
    assert (tmp_path / "here/second_spare/samples.txt").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/2] first_spare — the first_spare"
    assert lines[-1].startswith(f"{tmp_path / 'report.html'} is the report; the demo took")


def test_failed_chapter_does_not_lose_the_others(install, tmp_path, capsys):
    install(bad_spare=fails, good_spare=works)
    with pytest.raises(SystemExit, match="1"):
        main(["demo", "--report", "shown/demo.html"])
    page = (tmp_path / "shown/demo.html").read_text()
    assert "RuntimeError: no luck" in page
    assert "with seed 0" in page
    assert "error: bad_spare: RuntimeError: no luck" in capsys.readouterr().err


def test_domain_without_a_chapter_is_a_failure(install, tmp_path, monkeypatch):
    install(bad_spare=works)
    monkeypatch.delattr(sys.modules["bad_spare.demo"], "chapter")
    with pytest.raises(SystemExit, match="1"):
        main(["demo"])
    assert "no attribute" in (tmp_path / "report.html").read_text()


@pytest.mark.report
def test_interrupt_ends_the_demo(install, tmp_path):
    install(bad_spare=interrupted, good_spare=works)
    with pytest.raises(SystemExit, match="130"):
        main(["demo"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.report
def test_interrupt_keeps_the_chapters_before_it(install, tmp_path):
    install(good_spare=works, bad_spare=interrupted, late_spare=works)
    with pytest.raises(SystemExit, match="130"):
        main(["demo"])
    assert (tmp_path / "report.html").read_text().count("It works") >= 1
    assert not (tmp_path / "runs/demo/late_spare").exists()


def test_no_domain_is_a_clear_error(install):
    install()
    with pytest.raises(UserError, match="No domain with a demo is installed"):
        demo_module.demo()


def test_report_that_is_a_folder_is_refused_before_any_work(install, tmp_path):
    install(good_spare=works)
    with pytest.raises(UserError, match="tests is a folder: name a file"):
        demo_module.demo(report=ROOT / "tests")
    assert list(tmp_path.iterdir()) == []


def test_a_domain_without_a_demo_is_left_out(install, capsys, monkeypatch):
    install(good_spare=works)
    plain = Domain("plain", "has no module demo", "json", {})
    [good] = demo_module.all_domains()
    monkeypatch.setattr(demo_module, "all_domains", lambda: [plain, good])
    main(["demo"])
    assert capsys.readouterr().out.startswith("[1/1] good_spare")
