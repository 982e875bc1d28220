"""How a study was made, against what the paper says: each statement confirmed and refuted by runs made for it."""

import json
from dataclasses import replace
from pathlib import Path

import made_claims
import numpy as np
import pandas as pd
import pytest

from mfcore import store
from mfcore.claims import ledger as claims
from mfcore.claims.material import Material
from mfcore.claims.rows import load
from mfcore.claims.rules import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Finding
from mfcore.data.splits import ALL
from mfcore.study.config import MODES, Network, Patches, Settings, Splits

N_TRAININGS = "With four different"
N_SESSIONS = "five training sessions"
ONE_DOMAIN_TRAINS = "one domain served"
SAME_SPLITS = "all models were trained"
TEST_SHARE = "20% of all annotations"
PERCENTAGES = "the percentages refer"
IN_DOMAIN_SHARE = "20% of the in-domain"
VAL_SHARE = "20% of the respective"
ONE_CYCLE = "We used the one-cycle"
BEST_EPOCH = "the best-performing model"
PATCH_SIZE = "we extracted patches"
AUGMENTATION = "random color jitter"


def material(study: Settings | None = None, scores: pd.DataFrame | None = None, **known) -> Material:
    """What the paper's study is asked of, with what would be read from files given."""
    return made_claims.material(study or made_claims.study(), scores, known)


def ask(start: str, made: Material) -> Finding:
    return claims.measure(made_claims.row(start), made)


def verdict(start: str, made: Material) -> str:
    finding = ask(start, made)
    return NOT_TESTABLE if finding.barred else finding.outcome


def test_twenty_and_twentyfive_trainings_are_counted_from_what_predicted():
    made = material()
    assert ask(N_TRAININGS, made).found == "20 (adapted) to 20 for each of 10 arms"
    assert ask(N_SESSIONS, made).found == "25 (adapted) to 25 for each of 10 arms"
    assert verdict(N_TRAININGS, made) == verdict(N_SESSIONS, made) == REPRODUCED
    lost = made.study.scores[~((made.study.scores["arm"] == "uni") & (made.study.scores["fold"] == 2))]
    short = material(scores=lost)
    finding = ask(N_TRAININGS, short)
    assert (finding.outcome, finding.difference) == (NOT_REPRODUCED, -4)
    assert finding.found == "16 (uni) to 20 for each of 10 arms"
    assert ask(N_SESSIONS, short).found == "20 (uni) to 25 for each of 10 arms"
    other = made_claims.study(splits=Splits(sizes=(0.1, 1.0), n_folds=3))
    assert ask(N_TRAININGS, material(other)).barred[0] == "n_folds 3 by design, not 5"
    assert ask(N_SESSIONS, material(other)).barred == ["n_folds 3 by design, not 5"]
    none = made_claims.study(splits=Splits(by_domain=False))
    assert ask(N_SESSIONS, material(none)).barred == ["the study has no cross-domain fits"]


def test_a_fit_that_was_not_tested_on_every_domain_is_seen():
    made = material()
    assert verdict(ONE_DOMAIN_TRAINS, made) == REPRODUCED
    gone = (made.study.scores["train_domain"] == made_claims.DOMAINS[0]) & (
        made.study.scores["domain"] == made_claims.DOMAINS[1]
    )
    finding = ask(ONE_DOMAIN_TRAINS, material(scores=made.study.scores[~(gone & (made.study.scores["arm"] == "net"))]))
    assert (finding.outcome, finding.difference) == (NOT_REPRODUCED, -5)


def scored(arms=("a", "b"), folds=(0, 1)) -> pd.DataFrame:
    """Fits of arms that share their trainings, on all domains and on one: ``tested`` says on which patches."""
    units = [(ALL, fold, size, ALL) for fold in folds for size in (0.1, 1.0)] + [("x", 0, 1.0, domain) for domain in "xy"]
    columns = ["train_domain", "fold", "size", "domain"]
    return pd.concat([pd.DataFrame(units, columns=columns).assign(arm=arm, tested=7, n_train=9) for arm in arms])


def test_the_same_splits_are_seen_in_what_was_tested_and_one_patch_gives_another_verdict():
    table = scored().reset_index(drop=True)
    finding = ask(SAME_SPLITS, material(scores=table.sample(frac=1, random_state=1)))
    assert finding.outcome == REPRODUCED and finding.found.startswith("the same patches in 5 of 5 trainings")
    is_b = table["arm"] == "b"
    other = table.assign(tested=table["tested"].mask(is_b & (table["domain"] == "y"), 8))
    finding = ask(SAME_SPLITS, material(scores=other))
    assert (finding.outcome, finding.difference) == (NOT_REPRODUCED, -1) and "in 4 of 5" in finding.found
    fewer = table.assign(n_train=table["n_train"].mask(is_b & (table["size"] == 0.1), 8))
    assert "in 3 of 5" in ask(SAME_SPLITS, material(scores=fewer)).found
    assert ask(SAME_SPLITS, material(scores=scored(("a",)))).barred == ["it takes two arms"]


def labels(n: int = 20_552) -> pd.DataFrame:
    return pd.DataFrame({"domain": np.resize(made_claims.DOMAINS, n), "label": np.resize([0, 1], n)})


def test_shares_are_measured_and_100_percent_is_not_all():
    made = material(labels=labels())
    finding = ask(TEST_SHARE, made)  # the made scores have 4,110 test patches of 20,552
    assert finding.outcome == REPRODUCED and finding.found == "20.0% (20.0% to 20.0%)"
    assert ask(TEST_SHARE, material(labels=labels(30_000))).outcome == NOT_REPRODUCED
    assert ask(TEST_SHARE, material()).barred
    finding = ask(PERCENTAGES, made)
    assert finding.outcome == NOT_REPRODUCED and finding.found == "64.0%"
    assert ask(PERCENTAGES, material(labels=labels(13_200))).outcome == REPRODUCED
    own = ask(IN_DOMAIN_SHARE, material(labels=labels(5 * 20_550)))
    assert own.outcome == REPRODUCED and own.found.startswith("20.0%")
    assert ask(IN_DOMAIN_SHARE, made).outcome == NOT_REPRODUCED


def test_the_validation_share_is_that_of_the_splits():
    for n_val, expected in ((20, REPRODUCED), (40, NOT_REPRODUCED)):
        roles = ["train"] * 80 + ["val"] * n_val + ["test"] * 25
        assert (
            ask(VAL_SHARE, material(splits=pd.DataFrame({"train_domain": ALL, "size": 1.0, "role": roles}))).outcome == expected
        )
    assert "nowhere" in ask(VAL_SHARE, material()).barred[0], "without splits there is nothing to share"


def histories(folder: Path, peak: float) -> dict[str, store.Run]:
    """A finished training of the network "net" whose learning rate went up to ``peak``."""
    folder.mkdir()
    lines = [json.dumps({"unit": "all-fold0-size1", "learning_rate": rate}) for rate in (peak / 3, peak, 0.0)]
    (folder / "history.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"net-fold0": store.Run(folder, {"stage": "train", "name": "net-fold0", "config": {"network": {"name": "net"}}})}


@pytest.mark.parametrize(("peak", "expected"), [(0.98e-4, REPRODUCED), (5e-5, NOT_REPRODUCED), (2e-4, NOT_REPRODUCED)])
def test_the_highest_learning_rate_is_read_from_the_histories(peak, expected, tmp_path):
    assert verdict(ONE_CYCLE, material(runs=histories(tmp_path / "run", peak))) == expected
    faster = made_claims.study(networks=(Network("net", "resnet50", max_lr=1e-3), made_claims.NETWORKS[1]))
    assert ask(ONE_CYCLE, material(faster)).barred == ["no network trained end to end at 0.0001 by design has left its history"]


def test_without_a_history_no_learning_rate_is_claimed():
    assert ask(ONE_CYCLE, material()).barred == ["no network trained end to end at 0.0001 by design has left its history"]


def test_patches_epoch_and_augmentation_are_the_studys_settings():
    paper, strict = made_claims.study(), replace(made_claims.study(), switches=MODES["strict"])
    assert verdict(BEST_EPOCH, material(paper)) == NOT_REPRODUCED, "paper mode tests the last, as released"
    assert verdict(BEST_EPOCH, material(strict)) == REPRODUCED
    probes = made_claims.study(networks=())
    assert verdict(BEST_EPOCH, material(probes)) == NOT_TESTABLE
    assert verdict(PATCH_SIZE, material(paper)) == REPRODUCED
    small = replace(paper, patches=Patches(size_px=128))
    assert verdict(PATCH_SIZE, material(small)) == NOT_TESTABLE
    assert verdict(AUGMENTATION, material(paper)) == REPRODUCED
    still = made_claims.study(networks=(Network("net", "resnet50", rotation_probability=0.0), made_claims.NETWORKS[1]))
    finding = ask(AUGMENTATION, material(still))
    assert (finding.outcome, finding.found) == (NOT_REPRODUCED, "net without rotation")
    assert verdict(AUGMENTATION, material(probes)) == NOT_TESTABLE


def test_every_claim_on_method_is_among_these_tests():
    tested = [value for name, value in globals().items() if name.isupper() and isinstance(value, str)]
    method = [row.quote for row in load() if row.evidence == "method"]
    assert len(method) == 12 and all(quote.startswith(tuple(tested)) for quote in method)
