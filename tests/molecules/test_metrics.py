"""Metrics on cases that can be computed by hand."""

import math

import numpy as np
import pytest
from rdkit import Chem, DataStructs

from arflows.molecules.metrics import (
    MEASURES,
    compare,
    control,
    cosine,
    describe,
    describe_one,
    frechet_chemnet_distance,
    internal_diversity,
    nearest_similarity,
    novelty,
    passes,
    scaffold_of,
    share,
    synthetic_accessibility,
    uniqueness,
)
from arflows.molecules.workers import Workers

SET = ["CCO", "c1ccccc1O", "CC(=O)Nc1ccc(O)cc1", "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "CCCCCC"]


def bits(*on):
    vector = DataStructs.ExplicitBitVect(8)
    vector.SetBitsFromList(list(on))
    return vector


def mol(smiles):
    return Chem.MolFromSmiles(smiles)


def test_uniqueness_counts_the_first_ones():
    found = uniqueness(["C"] * 500 + [f"{'C' * n}O" for n in range(1, 1001)])
    assert found["unique@1k"] == {
        "value": 501 / 1000,
        "count": 501,
        "of": 1000,
        "what": "different ones of the first valid samples",
    }
    assert found["unique"]["count"] == 1001
    assert found["unique"]["of"] == 1500
    assert "unique@10k" not in found


def test_novelty_is_a_share_of_different_molecules():
    found = novelty(["C", "C", "CC", "CCC"], {"CC", "O"})
    assert (found["count"], found["of"]) == (2, 3)


def test_the_share_of_nothing_is_none():
    assert share(0, 0, "nothing")["value"] is None


def test_nearest_similarity_by_hand():
    # {0,1} is nearest to {0,1,2} (2/3), {3} to {3,4} (1/2)
    assert nearest_similarity([bits(0, 1), bits(3)], [bits(0, 1, 2), bits(3, 4), bits(7)]) == pytest.approx(7 / 12)


def test_internal_diversity_by_hand():
    pair = [bits(0, 1), bits(1, 2)]  # similarity 1/3; with itself 1
    assert internal_diversity(pair, 1) == pytest.approx(1 - (1 + 1 / 3) / 2)
    assert internal_diversity(pair, 2) == pytest.approx(1 - math.sqrt((1 + 1 / 9) / 2))
    assert internal_diversity([bits(0), bits(0)], 1) == 0
    three = [bits(0, 1), bits(1, 2), bits(5)]  # means of squares: 10/27 twice and 1/3
    assert internal_diversity(three, 2) == pytest.approx(1 - math.sqrt((10 / 27 * 2 + 1 / 3) / 3))
    assert internal_diversity(three, 2, program=True) == pytest.approx(
        1 - (2 * math.sqrt(10 / 27) + math.sqrt(1 / 3)) / 3
    )


def test_cosine_by_hand():
    assert cosine({"a": 3, "b": 4}, {"a": 1}) == pytest.approx(0.6)
    assert cosine({"a": 1}, {"b": 1}) == 0
    assert cosine({}, {"a": 1}) is None


@pytest.mark.parametrize(
    ("smiles", "scaffold"),
    [
        ("CCc1ccc(Cc2ccccc2)cc1", "c1ccc(Cc2ccccc2)cc1"),
        ("CCc1ccccc1", None),  # one ring
        ("CCCC", None),
        ("CC1CCC2CCCCC2C1", "C1CCC2CCCCC2C1"),
    ],
)
def test_scaffolds_have_two_rings_or_more(smiles, scaffold):
    assert scaffold_of(mol(smiles)) == scaffold


@pytest.mark.parametrize(
    ("smiles", "answer"),
    [
        ("CC(=O)Nc1ccc(C)cc1", True),
        ("C[N+](C)(C)C", False),  # a charge
        ("C[Si](C)(C)C", False),  # an element
        ("C1CCCCCCC1", False),  # a ring of eight
        ("CN=Nc1ccccc1", False),  # an alert
        ("C=CC=O", False),
    ],
)
def test_filters(smiles, answer):
    assert passes(mol(smiles)) is answer


def test_fragments_are_those_of_brics():
    # Phenacetin is cut at the amide and at the ether, on both sides.
    fragments = describe_one(mol("CCOc1ccc(NC(C)=O)cc1")).fragments
    assert len(fragments) == 5
    assert all("*" in fragment for fragment in fragments)
    assert describe_one(mol("CCCC")).fragments == ("CCCC",)


def test_measures_of_aspirin():
    values = dict(zip(MEASURES, describe_one(mol("CC(=O)Oc1ccccc1C(=O)O")).measures, strict=True))
    assert values["MW"] == pytest.approx(180.16, abs=0.01)
    assert values["TPSA"] == pytest.approx(63.6, abs=0.01)
    assert values["logP"] == pytest.approx(1.31, abs=0.01)
    assert values["QED"] == pytest.approx(0.55, abs=0.01)
    assert (values["atoms"], values["rings"]) == (13, 1)
    assert 1 < values["SA"] < 2


def test_a_strange_molecule_is_harder_to_make():
    assert synthetic_accessibility(mol("CC12CC3CC(C1)C1(CC1)C(C3)N2")) > synthetic_accessibility(mol("CCOCC")) + 2


def test_a_set_is_like_itself():
    descriptions = describe(SET, Workers(1))
    found = compare(descriptions, descriptions)
    assert (found["SNN"], found["fragment_similarity"]) == pytest.approx((1, 1))
    assert all(each["wasserstein"] == 0 for each in found["distributions"].values())
    assert found["scaffold_similarity"] == pytest.approx(1)
    assert found["generated"] == found["reference"] == len(SET)


def test_sets_that_differ_are_told_apart():
    worker = Workers(1)
    found = compare(describe(["C" * n for n in range(5, 15)], worker), describe(SET[1:5], worker))
    assert found["SNN"] < 0.2
    assert found["fragment_similarity"] == 0
    assert found["distributions"]["rings"]["wasserstein"] == pytest.approx((1 + 1 + 1 + 2) / 4)
    assert found["distributions"]["atoms"]["generated_mean"] == 9.5


@pytest.mark.filterwarnings("ignore")
def test_chemnet_tells_sets_apart():
    pytest.importorskip("fcd")
    alkanes = ["C" * n for n in range(1, 30)]
    assert frechet_chemnet_distance(alkanes, alkanes) == pytest.approx(0, abs=1e-3)
    assert frechet_chemnet_distance(alkanes, SET * 3) > 10


def test_control_by_hand():
    described = describe(["C", "CC", "CCC"], Workers(1))
    asked = {"atoms": np.array([1.0, 2.0, 5.0]), "activity": np.zeros(3)}
    found = control(described, asked)
    assert set(found) == {"atoms"}
    assert found["atoms"]["mean_absolute_error"] == pytest.approx(2 / 3)
    assert found["atoms"]["correlation"] == pytest.approx(np.corrcoef([1, 2, 3], [1, 2, 5])[0, 1])
    assert found["atoms"]["molecules"] == 3
