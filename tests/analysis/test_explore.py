"""Looking at patches: the right ones are shown, filters hold, and a slide's annotations lie where they are."""

import numpy as np
import pytest
from made_study import finish, opened

from mfcore.analysis import explore
from mfcore.data import patches
from mfcore.data.slides.reader import SlideError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("explore"))


@pytest.fixture
def study(folder):
    return opened(folder)


def test_scores_are_means_over_the_folds_that_tested_a_patch(study):
    table = explore.scored(study, "net").set_index("patch_id")
    tested = study.predictions[(study.predictions["arm"] == "net") & (study.predictions["size"] == 1.0)]
    mean = tested.groupby("patch_id")["score"].mean()
    np.testing.assert_allclose(table["score"], mean.loc[table.index])
    np.testing.assert_allclose(table["error"], (table["score"] - table["label"]).abs())
    one = explore.scored(study, "net", fold=0)
    assert set(one["patch_id"]) == set(tested.loc[tested["fold"] == 0, "patch_id"])
    assert set(explore.scored(study, "net", domain="a")["domain"]) == {"a"}


def test_an_unknown_arm_or_slide_is_refused_with_those_there_are(study, folder):
    with pytest.raises(ValueError, match=r"arm 'nett' has predicted nothing; choose one of \[.*'net'"):
        explore.ranked(study, "nett")
    with pytest.raises(ValueError, match=r"has no slide 'nowhere'; name one that it has, as '"):
        explore.slide(study, "nowhere", folder / "data")


def test_agreement_is_of_the_raters_votes(study):
    votes = [np.array(v, dtype=np.int8) for v in ([1, 1], [1, 0], [])]
    study.labels["votes"] = [votes[i % 3] for i in range(len(study.labels))]
    kept = {name: set(explore.scored(study, "net", agreement=name)["patch_id"] % 3) for name in explore.AGREEMENT}
    assert kept == {"any": {0, 1, 2}, "raters agree": {0}, "raters disagree": {1}}


def test_the_hardest_patches_are_shown_first(study):
    exhibit = explore.ranked(study, "tiny")
    errors = exhibit.table["error"]
    assert (np.diff(errors) <= 0).all() and exhibit.figure is not None
    _labels, images = patches.load(study.patches)
    worst = exhibit.table[exhibit.table["label"] == 0].head(explore.N_ACROSS)
    np.testing.assert_array_equal(explore._images(study, worst)[0], images[worst["patch_id"].iloc[0]])


def test_a_slide_is_shown_with_its_annotations(study, folder):
    whole, near = explore.slides(study, folder / "data")
    assert len(whole.table) == (study.labels["slide_id"] == study.labels["slide_id"].value_counts().index[0]).sum()
    assert 0 < len(near.table) <= len(whole.table)
    assert not list(explore.slides(study, folder / "nowhere"))


def test_a_view_has_the_pixels_of_its_place(study, folder):
    slide_id = study.labels["slide_id"].iloc[0]
    (axis,) = explore.slide(study, slide_id, folder / "data", (40, 40), 20).figure.axes
    (image,) = axis.images
    assert image.get_extent() == [0, 80, 80, 0] and image.get_array().shape == (explore.OVERVIEW_PX, explore.OVERVIEW_PX, 3)


def test_map_and_disagreement_name_every_patch(study):
    table = explore.map_of(study, "tiny").table
    assert set(table["patch_id"]) == set(study.labels["patch_id"])
    both = explore.disagreement(study, "net", "tiny").table
    assert (np.diff(both["difference"]) >= 0).all() and set(both) >= {"score_1", "score_2"}


@pytest.fixture
def browsing(monkeypatch):
    """What controls show, in order, where somebody looks on."""
    shown = []
    monkeypatch.setattr(explore, "is_watched", lambda: True)
    monkeypatch.setattr("ipywidgets.widgets.interaction.display", shown.append)
    return shown


def chosen(widget, **values):
    """Change controls by their names, one after the other."""
    for control in widget.children[:-1]:
        if control._kwarg in values:
            control.value = values[control._kwarg]


def test_controls_are_made_only_where_somebody_looks_on(study, folder):
    assert explore.browse_ranked(study, "net") is None and explore.browse_slide(study, folder / "data") is None
    assert explore.browse_map(study, explore.mapped(study, "tiny")) is None
    assert explore.browse_disagreement(study, "net", "tiny") is None


def test_patches_by_score_follow_their_controls(study, browsing):
    widget = explore.browse_ranked(study, "net")
    assert browsing[-1].table.equals(explore.ranked(study, "net").table) and browsing[-1].figure is not None
    chosen(widget, arm="tiny", domain="a", fold=1)
    assert len(browsing) == 4 and widget.clear_output  # each picture replaces the one before
    assert browsing[-1].table.equals(explore.ranked(study, "tiny", domain="a", fold=1).table)
    chosen(widget, agreement="raters disagree")
    assert browsing[-1].table.empty


def test_a_slide_follows_its_controls(study, folder, browsing):
    counts = study.labels["slide_id"].value_counts()
    widget = explore.browse_slide(study, folder / "data")
    which, place, field, *_others = widget.children
    assert which.value == counts.index[0] and (place.min, place.max) == (1, counts.iloc[0]) and field.value == 200
    before = study.labels[study.labels["slide_id"] == which.value].iloc[-1]
    chosen(widget, annotation=place.max, field_um=20)
    assert before["patch_id"] in set(browsing[-1].table["patch_id"]) and "a field of 20 µm" in browsing[-1].caption
    chosen(widget, slide_id=counts.index[-1])
    assert counts.index[-1] in browsing[-1].caption
    assert explore.browse_slide(study, folder / "nowhere") is None


def test_a_slide_that_lacks_is_named_below_the_controls(study, folder, browsing, monkeypatch):
    def lacks(*_arguments):
        raise SlideError("no slide here")

    monkeypatch.setattr(explore, "slide", lacks)
    explore.browse_slide(study, folder / "data")
    assert browsing[-1].data == "no slide here"


def test_a_map_shows_the_patches_nearest_to_the_point(study, browsing):
    table = explore.mapped(study, "tiny")
    widget = explore.browse_map(study, table)
    at = table.iloc[3]
    chosen(widget, x=float(at["x"]), y=float(at["y"]))
    assert browsing[-1].table["patch_id"].iloc[0] == at["patch_id"] and len(browsing[-1].table) == explore.N_ACROSS


def test_two_arms_follow_their_controls(study, browsing):
    widget = explore.browse_disagreement(study, "net", "tiny")
    chosen(widget, second="lora")
    assert browsing[-1].table.equals(explore.disagreement(study, "net", "lora").table)
    chosen(widget, first="lora")
    assert browsing[-1].data == "Choose two different arms."


def test_arms_come_best_first(study):
    found = explore.best_arms(study)
    scores = study.scores[study.scores["size"] == 1.0].groupby("arm")["auroc"].mean()
    assert found == scores.sort_values(ascending=False).index.tolist()
