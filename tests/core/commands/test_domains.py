import importlib.metadata
from importlib.metadata import EntryPoint

import pytest

from arflows.core.commands import domains
from arflows.core.commands.domains import Domain, all_domains, find_domain
from arflows.core.runtime.errors import UserError, unknown_name

SPARE = Domain(name="spare", summary="a domain of the tests", module="spare", verbs={})


@pytest.fixture
def offer(monkeypatch):
    """Installs entry points in place of those of the environment."""

    def install(**targets):
        points = [EntryPoint(name, f"{__name__}:{target}", domains.GROUP) for name, target in targets.items()]
        monkeypatch.setattr(domains, "entry_points", lambda group: points if group == domains.GROUP else [])

    return install


def test_own_domains_are_found_by_their_entry_points():
    assert "vision" in [domain.name for domain in all_domains()]


def test_entry_point_and_domain_agree_on_the_name():
    for point in importlib.metadata.entry_points(group=domains.GROUP):
        assert point.load().name == point.name


def test_a_foreign_package_can_offer_a_domain(offer):
    offer(spare="SPARE")
    assert find_domain("spare") is SPARE
    assert all_domains() == [SPARE]


def test_a_broken_domain_does_not_hinder_another(offer):
    offer(broken="nothing_of_this_name", spare="SPARE")
    assert find_domain("spare") is SPARE
    with pytest.raises(UserError, match=r"'broken'.*does not load.*uninstall"):
        all_domains()


def test_what_is_no_domain_is_refused(offer):
    offer(spare="__name__")
    with pytest.raises(UserError, match="is no Domain"):
        find_domain("spare")


def test_unknown_domain_is_told_with_the_closest(offer):
    offer(spare="SPARE")
    with pytest.raises(UserError, match=r"no domain or command 'spair'. Did you mean spare\? There is: spare, demo"):
        find_domain("spair", also=["demo"])


def test_unknown_name_without_anything_close():
    assert str(unknown_name("recipe", "zzz", ["cifar10"])) == "There is no recipe 'zzz'. There is: cifar10."
    assert str(unknown_name("recipe", "zzz", [])) == "There is no recipe 'zzz'. There is: none."
