"""RI and CRoMa: planted structure, and the numbers of the authors' package."""

import numpy as np
import pandas as pd
import pytest

from mfcore.measures import robustness


def made(by_biology, by_origin, seed=0, n=400):
    """Features that lie by biology and by origin, as strongly as said; each case has five patches."""
    rng = np.random.default_rng(seed)
    case = np.arange(n) // 5
    biology, origin = case % 2, case // 2 % 3
    features = rng.standard_normal((n, 16))
    features[:, 0] += by_biology * (2 * biology - 1)
    features[:, 1] += by_origin * (origin - 1)
    return features.astype(np.float32), biology, origin, case


def test_what_an_embedding_lies_by_is_told():
    robust, fragile = robustness.neighbours(*made(6, 0)), robustness.neighbours(*made(0, 6))
    assert robust.robustness_index > 0.95 and fragile.robustness_index < 0.3
    assert robust.croma > 0.2 and fragile.croma < -0.1 and robust.croma_tail < robust.croma
    nothing = robustness.neighbours(*made(0, 0))
    assert abs(nothing.croma) < 0.1


@pytest.mark.parametrize("k", [5, 11])
def test_numbers_are_those_of_the_authors_package(k):
    croma = pytest.importorskip("croma", reason="the package croma is not installed")
    features, biology, origin, case = made(1, 1)
    names = np.arange(len(case)).astype(str)
    ids = {"sample_id": names, "image_path": names, "dataset": "made", "label": biology.astype(str)}
    manifest = pd.DataFrame({**ids, "center": origin.astype(str), "group_id": case.astype(str)})
    found = robustness.neighbours(features, biology, origin, case, k)
    theirs = croma.RI.compute(features, manifest, confounder_column="center", k_candidates=[k])
    assert found.robustness_index == pytest.approx(theirs.value, abs=1e-9)
    margin = croma.CRoMa.compute(features, manifest, confounder_column="center")
    assert found.croma == pytest.approx(margin.value, abs=1e-6)
    assert found.croma_tail == pytest.approx(margin.ltm_alpha, abs=1e-6)


def test_a_patch_has_no_neighbour_in_its_own_case():
    features, biology, origin, _case = made(0, 0, n=40)
    found = robustness.neighbours(features, biology, origin, np.zeros(40))
    assert not found.n_so.any() and not found.n_os.any() and np.isnan(found.croma) and np.isnan(found.robustness_index)


def test_too_few_of_a_kind_give_no_margin():
    features, biology, _origin, case = made(1, 1, n=60)
    found = robustness.neighbours(features, biology, np.arange(60), case)
    assert np.isnan(found.margins).all() and found.n_os.sum() == 0


def test_blocks_do_not_matter(monkeypatch):
    whole = robustness.neighbours(*made(1, 1))
    monkeypatch.setattr(robustness, "BLOCK", 7)
    parts = robustness.neighbours(*made(1, 1))
    np.testing.assert_array_equal(whole.n_so, parts.n_so)
    np.testing.assert_allclose(whole.margins, parts.margins, atol=1e-12)


def test_rows_that_differ_are_refused():
    with pytest.raises(ValueError, match="one row a patch"):
        robustness.neighbours(np.ones((3, 2)), np.ones(3), np.ones(2), np.ones(3))
