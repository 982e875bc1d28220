"""RankMe and ODCorr: spectra and correlations worked out by hand, by a loop, and streamed against computed at once."""

import math

import numpy as np
import pytest

from mfcore.measures import representation
from mfcore.measures.representation import RepresentationError, Streaming


def with_spectrum(singular_values, n=40, n_dims=None, seed=0):
    """Features (n, n_dims) that have these singular values."""
    rng = np.random.default_rng(seed)
    k = len(singular_values)
    left = np.linalg.qr(rng.normal(size=(n, k)))[0]
    right = np.linalg.qr(rng.normal(size=(n_dims or k, k)))[0]
    return left * np.array(singular_values) @ right.T


def correlated(n=300, n_dims=12, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_dims)) @ rng.normal(size=(n_dims, n_dims)) + rng.normal(size=n_dims)


def streamed(features):
    """The features in seven chunks."""
    stream = Streaming(features.shape[1])
    for part in np.array_split(features, 7):
        stream.add(part)
    return stream


def at_once(features):
    """ODCorr by numpy's own correlations: mean absolute, mean squared."""
    r = np.corrcoef(features.astype(np.float64), rowvar=False)[~np.eye(features.shape[1], dtype=bool)]
    return np.abs(r).mean(), (r**2).mean()


def both_rankmes(features):
    return representation.rankme(features), streamed(features).rankme()


# Shares 1/4 each: exp(4 * 1/4 * ln 4) = 4. Shares 1/2, 1/4, 1/4: exp(ln 2 / 2 + ln 4 / 2) = 2 * sqrt 2.
# Shares 8/10, 1/10, 1/10: exp(0.8 ln 1.25 + 0.2 ln 10) = 1.25^0.8 * 10^0.2.
@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [((3, 3, 3, 3), 4), ((2, 1, 1), 2 * math.sqrt(2)), ((8, 1, 1), 1.25**0.8 * 10**0.2), ((5,), 1)],
)
def test_rankme_of_a_known_spectrum_is_what_the_equation_gives_by_hand(spectrum, expected):
    for value in both_rankmes(with_spectrum(spectrum)):
        assert value == pytest.approx(expected, rel=2e-6)


def test_rankme_takes_singular_values_not_eigenvalues_and_is_not_normalised():
    found = representation.rankme(with_spectrum((2, 1)))
    eigenvalues = math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    singular = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert found == pytest.approx(singular, rel=1e-5) and abs(found - eigenvalues) > 0.1
    assert representation.rankme(with_spectrum((1,) * 10)) == pytest.approx(10, rel=1e-5)


def test_rankme_is_of_the_features_as_they_are_and_a_shift_changes_it():
    features = with_spectrum((1, 1, 1))
    for value in both_rankmes(features + 100):
        assert value < 1.2 < representation.rankme(features)


def test_the_paper_s_eps_is_added_to_each_share():
    found = representation.rankme(with_spectrum((1,), n=50, n_dims=30))
    share = np.array([1.0, *[0.0] * 29]) + 1e-7
    assert found == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-9)
    assert found > 1 + 4e-5


def test_odcorr_is_the_mean_over_pairs_as_a_loop_has_it():
    features = correlated()
    pairs = [np.corrcoef(features[:, i], features[:, j])[0, 1] for i in range(12) for j in range(i)]
    found = streamed(features)
    assert found.odcorr_abs() == pytest.approx(np.mean(np.abs(pairs)), rel=1e-10)
    assert found.odcorr_sq() == pytest.approx(np.mean(np.square(pairs)), rel=1e-10)
    assert found.odcorr_abs() != pytest.approx(found.odcorr_sq(), rel=0.1)


def test_odcorr_by_hand():
    first = np.array([1.0, 2, 3, 4])
    second = np.array([2.0, 1, 4, 3])  # deviations -1.5 -0.5 0.5 1.5 and -0.5 -1.5 1.5 0.5: r = 3 / 5
    features = np.stack([first, second, -first], axis=1)  # r of the pairs: 0.6, -1, -0.6
    assert streamed(features).odcorr_abs() == pytest.approx(2.2 / 3)
    assert streamed(features).odcorr_sq() == pytest.approx((0.36 + 1 + 0.36) / 3)


def test_dimensions_that_repeat_one_another_correlate_by_1_and_no_more():
    """However the sums are rounded."""
    for seed in range(40):
        x = np.random.default_rng(seed).normal(size=(17, 1)) @ np.random.default_rng(seed + 99).normal(size=(1, 5))
        stream = representation.Streaming(5).add(x)
        values = [stream.odcorr_abs(), stream.odcorr_sq()]
        assert max(values) <= 1 and min(values) > 1 - 1e-9


def test_a_constant_dimension_is_left_out_and_named():
    features = correlated()
    more = np.insert(features, 3, 7.1, axis=1)
    stream = Streaming(13).add(more[:100]).add(more[100:])
    for name in ("odcorr_abs", "odcorr_sq"):
        assert getattr(stream, name)() == pytest.approx(getattr(streamed(features), name)())
    assert stream.constant_dims().tolist() == [i == 3 for i in range(13)]


def test_with_fewer_than_two_dimensions_that_vary_there_is_no_correlation():
    features = np.stack([np.arange(5.0), np.ones(5)], axis=1)
    for name in ("odcorr_abs", "odcorr_sq"):
        assert math.isnan(getattr(streamed(features), name)())
        assert math.isnan(getattr(streamed(features[:1].repeat(7, 0)), name)())


def test_features_that_are_all_zero_have_one_direction_at_most():
    for value in both_rankmes(np.zeros((9, 5))):
        assert value == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("offset", [0, 1e3, 1e5])
def test_the_stream_agrees_with_the_whole_however_far_the_mean_lies(offset):
    features = (correlated(500, 20) + offset).astype(np.float32)
    found = streamed(features)
    assert found.rankme() == pytest.approx(representation.rankme(features), rel=1e-6)
    assert (found.odcorr_abs(), found.odcorr_sq()) == pytest.approx(at_once(features), rel=1e-9)


def test_the_stream_agrees_where_the_spectrum_falls_below_what_products_resolve():
    features = with_spectrum(10.0 ** -np.arange(0, 16, 0.25), n=200)
    whole, of_stream = both_rankmes(features)
    assert of_stream == pytest.approx(whole, rel=1e-4)


def test_fewer_rows_than_dimensions():
    features = np.random.default_rng(0).normal(size=(10, 40))
    whole, of_stream = both_rankmes(features)
    assert of_stream == pytest.approx(whole, rel=1e-7) and whole < 10.01


def test_the_stream_does_not_depend_on_how_it_is_cut(monkeypatch):
    features = correlated(101)
    one = Streaming(12).add(features)
    monkeypatch.setattr(representation, "PIECE_ROWS", 10)
    other = Streaming(12).add(features[:33]).add(features[:0]).add(features[33:])
    assert one.n == other.n == 101
    for name in ("rankme", "odcorr_abs", "odcorr_sq"):
        assert getattr(other, name)() == pytest.approx(getattr(one, name)(), rel=1e-12)


def test_what_the_stream_keeps_does_not_grow_with_the_rows():
    def kept(stream):
        return sum(value.nbytes for value in vars(stream).values() if isinstance(value, np.ndarray))

    stream = Streaming(12).add(correlated())
    once = kept(stream)
    for _ in range(20):
        stream.add(correlated())
    assert kept(stream) == once < 20 * 12 * 12 and stream.n == 21 * 300


def test_the_stream_leaves_the_caller_s_array_alone():
    features = correlated()
    before = features.copy()
    Streaming(12).add(features)
    assert (features == before).all()


def test_by_chance_is_what_independent_dimensions_give():
    rng = np.random.default_rng(0)
    for n in (4, 30):
        found = np.array(
            [[x.odcorr_abs(), x.odcorr_sq()] for x in (streamed(rng.normal(size=(n, 40))) for _ in range(30))]
        ).mean(axis=0)
        assert found == pytest.approx([representation.odcorr_abs_by_chance(n), representation.odcorr_sq_by_chance(n)], rel=0.03)
    assert representation.odcorr_abs_by_chance(10**6) == pytest.approx(math.sqrt(2 / (math.pi * 10**6)), rel=1e-5)
    assert math.isnan(representation.odcorr_abs_by_chance(2)) and math.isnan(representation.odcorr_sq_by_chance(2))


@pytest.mark.parametrize("wrong", [np.zeros(5), np.zeros((0, 5)), np.zeros((5, 0))])
def test_what_is_no_matrix_of_features_is_refused(wrong):
    with pytest.raises(RepresentationError, match="must be"):
        representation.rankme(wrong)


def test_nan_and_infinity_are_refused_with_their_rows():
    features = correlated()
    features[5, 2], features[250, 0] = np.nan, np.inf
    for of in (representation.rankme, Streaming(12).add):
        with pytest.raises(RepresentationError, match=r"2 rows .*\[5, 250\]"):
            of(features)
    with pytest.raises(RepresentationError, match=r"\[350\]"):
        Streaming(12).add(correlated()).add(features[200:])


def test_an_empty_stream_is_said_to_be_empty():
    for name in ("rankme", "odcorr_abs", "odcorr_sq", "constant_dims"):
        with pytest.raises(RepresentationError, match="no rows"):
            getattr(Streaming(3), name)()


@pytest.mark.parametrize("measured", [representation.rankme, Streaming(2).add])
@pytest.mark.parametrize("rows", [[["a", "b"]], [[1.0, None]], [[1j, 2]]])
def test_what_holds_no_numbers_is_refused(measured, rows):
    """A table with a column of text, say."""
    with pytest.raises(RepresentationError, match=r"no numbers; leave out what is none"):
        measured(np.array(rows))
