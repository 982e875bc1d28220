"""A collapse is seen, said with what to change, and not seen where there is none."""

import math

import numpy as np
import pytest
import torch
from made_pretraining import settings

from mfcore.pretraining import objective
from mfcore.pretraining.method import METHODS, SMALL
from mfcore.pretraining.objective import PretrainingError

K = 64
AS_PUBLISHED = {key: METHODS["dino"].published[key] for key in (*SMALL, "n_prototypes")}
LONG = {"n_steps": 10_000, "n_prototypes": K, "batch_size": 64}


def lines(n, teacher, target, rankme=20.0, loss=3.0, n_steps=10_000):
    """A history of n lines over all but the last tenth of the steps, the same in each."""
    steps = np.linspace(n_steps / n, 0.9 * n_steps, n).astype(int).tolist()
    numbers = {"loss": loss, "teacher_entropy": teacher, "target_entropy": target, "rankme": rankme, "learning_rate": 1e-4}
    return [{"step": step, **numbers} for step in steps]


def test_entropies_are_shannons():
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3))
    p[0, 0] = [1, 0, 0, 0, 0]
    expected = [[-sum(q * math.log(q) for q in row if q > 0) for row in rows] for rows in p]
    np.testing.assert_allclose(objective.entropies(torch.from_numpy(p)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("teacher", "target", "rankme", "said"),
    [
        (0.01, 0.02, 20.0, "all images get the same few prototypes"),
        (math.log(K) - 0.02, math.log(K) - 0.01, 20.0, "the same target, spread over the prototypes"),
        (1.0, 3.0, 1.05, "embeddings lie on a line"),
    ],
)
def test_each_kind_of_collapse_stops_the_training(teacher, target, rankme, said):
    with pytest.raises(PretrainingError, match=rf"pretraining\[own\] collapsed by step 9000 of 10000: .*{said}.*momentum"):
        objective.check_history(lines(100, teacher, target, rankme), settings(**LONG))


def test_a_healthy_training_goes_on():
    history = lines(100, 1.0, 3.0)
    objective.check_history(history, settings(**LONG))
    assert objective.collapse_of(history, settings(**LONG)) == ""


@pytest.mark.parametrize(("share", "collapsed"), [(0.005, True), (0.02, False)])
def test_a_hundredth_of_what_targets_could_tell_is_the_least(share, collapsed):
    history = lines(100, 2.0, 2.0 + share * math.log(K))
    assert bool(objective.collapse_of(history, settings(**LONG))) == collapsed


@pytest.mark.parametrize(("target", "collapsed"), [(2.0, False), (2.99, True)])
def test_a_mean_that_trails_behind_targets_that_spread_tells_no_collapse(target, collapsed):
    assert bool(objective.collapse_of(lines(20, 3.0, target), settings(**LONG))) == collapsed


@pytest.mark.parametrize(("rankme", "collapsed"), [(1.05, True), (1.3, False)])
def test_embeddings_of_hardly_more_than_a_direction_are_collapsed(rankme, collapsed):
    assert bool(objective.collapse_of(lines(100, 1.0, 3.0, rankme), settings(**LONG))) == collapsed


def test_one_better_line_is_enough_to_go_on():
    """A collapse lasts: what is passing isn't one."""
    history = lines(100, 0.01, 0.02)
    history[-3]["target_entropy"] = 2.0
    objective.check_history(history, settings(**LONG))


def test_networks_may_begin_without_telling_images_apart():
    history = lines(100, 0.01, 0.02)
    n_judged = 15 + 5  # grace and patience, of a hundred lines
    early = [line for line in history if line["step"] < 100 * n_judged]
    objective.check_history(early, settings(**LONG))
    with pytest.raises(PretrainingError):
        objective.check_history(history[: len(early) + 2], settings(**LONG))


def test_a_thousand_steps_are_always_granted():
    """Of 3,000 steps, too, and no fewer than 150 more that it has to last."""
    this = settings(n_steps=3000, n_prototypes=K, batch_size=64)
    history = [{**line, "step": step} for step, line in enumerate(lines(1200, 0.01, 0.02), 1)]
    objective.check_history(history[:1149], this)
    with pytest.raises(PretrainingError, match="by step 1150 of 3000"):
        objective.check_history(history[:1150], this)


def test_a_short_training_is_not_stopped_but_its_end_is_said():
    this = settings(n_steps=200, n_prototypes=K, batch_size=64)
    history = lines(100, 0.01, 0.02, n_steps=200)
    objective.check_history(history, this)
    assert "same few prototypes" in objective.collapse_of(history[-20:], this)


@pytest.mark.parametrize("key", ["loss", "teacher_entropy"])
def test_a_loss_that_is_no_number_stops_at_once(key):
    history = lines(1, 1.0, 3.0)
    history[-1][key] = math.nan
    with pytest.raises(PretrainingError, match=r"the loss became \S+ by step 10000 .* rate of 0.0001; lower base_lr"):
        objective.check_history(history, settings(**LONG))


def test_rankme_that_was_not_measured_is_no_collapse():
    objective.check_history(lines(100, 1.0, 3.0, None), settings(**LONG))


@pytest.mark.parametrize(
    "said",
    [
        "where targets are uniform, lower teacher_temperature (now [0.04, 0.07])",
        "n_prototypes (now 65536; a batch has 64 targets",
        "set koleo_weight: 0.1 (now 0)",
        "centring: sinkhorn_knopp (now mean)",
        "where few prototypes get all images, raise momentum towards 0.9995 (now 0.996)",
        "lower base_lr (now 0.2)",
    ],
)
def test_the_remedy_names_what_to_change_and_its_value(said):
    assert said in objective.remedy(settings(**AS_PUBLISHED, batch_size=32))
