"""How a study was made, against what the paper says: each statement confirmed and refuted by runs made for it."""

import json
from dataclasses import replace
from pathlib import Path

import made_claims
import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.analysis import compare
from mfcore.claims import ledger as claims, methods as claims_methods
from mfcore.claims.judge import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Material
from mfcore.data.splits import ALL
from mfcore.study.config import MODES, Network, Patches, Splits, Study

NONE = pd.DataFrame({"arm": [], "reason": []})


def material(study: Study | None = None, scores: pd.DataFrame | None = None, **known) -> Material:
    """Material of the paper's study, with what would be read from files given."""
    study = study or made_claims.study()
    made = Material(study, made_claims.scores(study) if scores is None else scores, Path("nowhere"))
    vars(made).update(known)
    return made


def verdict(function, made: Material) -> str:
    finding = function(made)
    return NOT_TESTABLE if finding.barred else finding.outcome


def test_twenty_and_twentyfive_trainings_are_counted_from_what_predicted():
    made = material()
    assert claims_methods._n_trainings(made).found == "20 for each of 10 arms"
    assert claims_methods._n_sessions(made).found == "25 for each of 10 arms"
    assert verdict(claims_methods._n_trainings, made) == verdict(claims_methods._n_sessions, made) == REPRODUCED
    lost = made.scores[~((made.scores["arm"] == "uni") & (made.scores["fold"] == 2))]
    short = material(scores=lost)
    finding = claims_methods._n_trainings(short)
    assert (finding.outcome, finding.difference, finding.why) == (NOT_REPRODUCED, -4, "not complete: uni 16")
    assert claims_methods._n_sessions(short).found == "20 to 25 for each of 10 arms"
    other = made_claims.study(splits=Splits(sizes=(0.1, 1.0), n_folds=3))
    assert claims_methods._n_trainings(material(other)).barred == "this study has 3 folds and 2 sizes by design"
    assert claims_methods._n_sessions(material(other)).barred == "this study has 3 folds and 5 domains by design"
    none = made_claims.study(splits=Splits(by_domain=False))
    assert claims_methods._n_sessions(material(none)).barred == "the study has no cross-domain fits"


def test_a_fit_that_was_not_tested_on_every_domain_is_seen():
    made = material()
    assert verdict(claims_methods._one_domain_trains, made) == REPRODUCED
    gone = (made.scores["train_domain"] == made_claims.DOMAINS[0]) & (made.scores["domain"] == made_claims.DOMAINS[1])
    finding = claims_methods._one_domain_trains(material(scores=made.scores[~(gone & (made.scores["arm"] == "net"))]))
    assert (finding.outcome, finding.difference) == (NOT_REPRODUCED, -5)


def predictions(arms=("a", "b"), folds=(0, 1)) -> pd.DataFrame:
    units = [(ALL, fold, size) for fold in folds for size in (0.1, 1.0)]
    rows = [
        {"arm": arm, "train_domain": domain, "fold": fold, "size": size, "patch_id": 10 * fold + i, "n_train": round(99 * size)}
        for arm in arms
        for domain, fold, size in units
        for i in range(5)
    ]
    return pd.DataFrame(rows)


def test_the_same_splits_are_seen_in_the_predictions_and_one_patch_gives_another_verdict():
    table = predictions()
    shuffled = table.sample(frac=1, random_state=1)
    finding = claims_methods._same_splits(material(collected=compare.Collected(shuffled, NONE)))
    assert finding.outcome == REPRODUCED and finding.found.startswith("the same patches in 4 of 4 trainings")
    other = table.copy()
    other.loc[(other["arm"] == "b") & (other["fold"] == 1) & (other["size"] == 1.0) & (other["patch_id"] == 12), "patch_id"] = (
        99
    )
    finding = claims_methods._same_splits(material(collected=compare.Collected(other, NONE)))
    assert (finding.outcome, finding.difference) == (NOT_REPRODUCED, -1) and "in 3 of 4" in finding.found
    fewer = table.copy()
    fewer.loc[(fewer["arm"] == "b") & (fewer["size"] == 0.1), "n_train"] = 9
    assert "in 2 of 4" in claims_methods._same_splits(material(collected=compare.Collected(fewer, NONE))).found
    single = claims_methods._same_splits(material(collected=compare.Collected(predictions(("a",)), NONE)))
    assert single.barred == "it takes two arms"
    assert claims_methods._same_splits(material(collected=None)).barred == "no predictions in the results"


def labels(n: int = 20_552) -> pd.DataFrame:
    return pd.DataFrame({"domain": np.resize(made_claims.DOMAINS, n), "label": np.resize([0, 1], n)})


def test_shares_are_measured_and_100_percent_is_not_all():
    made = material(labels=labels())
    finding = claims_methods._test_share(made)  # the made scores have 4,110 test patches of 20,552
    assert finding.outcome == REPRODUCED and finding.found == "20.0 %"
    assert claims_methods._test_share(material(labels=labels(30_000))).outcome == NOT_REPRODUCED
    assert claims_methods._test_share(material(labels=None)).barred
    finding = claims_methods._percentages(made)
    assert finding.outcome == NOT_REPRODUCED and finding.found == "64.0 % of the annotations train at 100 %"
    assert claims_methods._percentages(material(labels=labels(13_200))).outcome == REPRODUCED
    own = claims_methods._in_domain_share(material(labels=labels(5 * 20_550)))
    assert own.outcome == REPRODUCED and own.found == "20.0 %"
    assert claims_methods._in_domain_share(made).outcome == NOT_REPRODUCED
    by_slide = replace(made_claims.study(), switches=MODES["strict"])
    assert "whole slides are drawn here" in claims_methods._test_share(material(by_slide, labels=labels())).why
    assert "whole slides" not in finding.why


def test_the_validation_share_is_that_of_the_splits(monkeypatch):
    for n_val, expected in ((20, REPRODUCED), (40, NOT_REPRODUCED)):
        roles = ["train"] * 80 + ["val"] * n_val + ["test"] * 25
        table = pd.DataFrame({"train_domain": ALL, "size": 1.0, "role": roles})
        monkeypatch.setattr(claims_methods.splits, "find", lambda *_: None)
        monkeypatch.setattr(claims_methods.splits, "load", lambda _, table=table: table)
        assert claims_methods._val_share(material()).outcome == expected
    monkeypatch.undo()
    assert claims_methods._val_share(material()).barred == "no splits in the results"


def histories(folder: Path, peak: float) -> dict[str, store.Run]:
    """A finished training of the network "net" whose learning rate went up to ``peak``."""
    folder.mkdir()
    lines = [json.dumps({"unit": "all-fold0-size1", "learning_rate": rate}) for rate in (peak / 3, peak, 0.0)]
    (folder / "history.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"net-fold0": store.Run(folder, {"stage": "train", "name": "net-fold0", "config": {"network": {"name": "net"}}})}


@pytest.mark.parametrize(("peak", "expected"), [(0.98e-4, REPRODUCED), (5e-5, NOT_REPRODUCED), (2e-4, NOT_REPRODUCED)])
def test_the_highest_learning_rate_is_read_from_the_histories(peak, expected, tmp_path, monkeypatch):
    runs = histories(tmp_path / "run", peak)
    monkeypatch.setattr(compare, "current_runs", lambda *_: runs)
    assert verdict(claims_methods._one_cycle, material()) == expected
    faster = made_claims.study(networks=(Network("net", "resnet50", max_lr=1e-3), made_claims.NETWORKS[1]))
    assert claims_methods._one_cycle(material(faster)).barred == "this study's networks have another learning rate by design"


def test_without_a_history_no_learning_rate_is_claimed():
    assert claims_methods._one_cycle(material()).barred == "no end-to-end training has left its history"


def test_patches_epoch_and_augmentation_are_the_studys_settings():
    paper, strict = made_claims.study(), replace(made_claims.study(), switches=MODES["strict"])
    assert verdict(claims_methods._best_epoch, material(paper)) == NOT_REPRODUCED, "paper mode tests the last, as released"
    assert verdict(claims_methods._best_epoch, material(strict)) == REPRODUCED
    probes = made_claims.study(networks=())
    assert verdict(claims_methods._best_epoch, material(probes)) == NOT_TESTABLE
    assert verdict(claims_methods._patch_size, material(paper)) == REPRODUCED
    small = replace(paper, patches=Patches(size_px=128))
    assert verdict(claims_methods._patch_size, material(small)) == NOT_TESTABLE
    assert verdict(claims_methods._augmentation, material(paper)) == REPRODUCED
    still = made_claims.study(networks=(Network("net", "resnet50", rotation_probability=0.0), made_claims.NETWORKS[1]))
    finding = claims_methods._augmentation(material(still))
    assert (finding.outcome, finding.found) == (NOT_REPRODUCED, "net without rotations")
    assert verdict(claims_methods._augmentation, material(probes)) == NOT_TESTABLE


def test_every_claim_on_method_is_among_these_tests():
    tested = set(Path(__file__).read_text(encoding="utf-8").split("claims_methods."))
    functions = {claim.measure.__name__ for subject, claim in claims.CLAIMS if subject == claims.METHOD}
    assert all(any(part.startswith(name) for part in tested) for name in functions)
