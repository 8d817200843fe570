from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.halves import HeldOut, halve, read_halves
from forward_inf_mlflow.tasks import Classification, Regression
from forward_inf_mlflow.tensors import Tensors
from forward_inf_mlflow.trainers import Continued, Recipe, Refitted, describe

QUICK = Recipe(epochs=2, batch_size=8, rates=(1e-2,))
N, M, D, K = 41, 9, 4, 3
STRATA = np.arange(N) % K


class Recorder:
    """A fit whose output for every row is whether the model was trained on it, and a number."""

    note, alike = "recorded", False

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.halves: list[np.ndarray] = []

    def __call__(self, index: np.ndarray, seed: int, /) -> tuple[np.ndarray, np.ndarray]:
        self.seeds.append(seed)
        self.halves.append(index)
        seen = np.isin(np.arange(N), index)
        number = np.full(N, len(self.seeds))
        return np.stack([seen, number], 1), np.full((M, 2), len(self.seeds))


def data(batch_size: int = 16) -> tuple[Tensors, Tensors]:
    """Three separable blobs: training rows and queries."""
    rng = np.random.default_rng(0)
    found = []
    for n in (N, M):
        y = np.arange(n) % K
        x = (np.eye(K, D)[y] * 3 + rng.normal(size=(n, D))).astype(np.float32)
        found.append(
            Tensors(torch.as_tensor(x), torch.as_tensor(y), torch.device("cpu"), batch_size)
        )
    return found[0], found[1]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(D, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, K)
    ).eval()


def exported() -> nn.Module:
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch},)
    return torch.export.export(network(), (torch.randn(4, D),), dynamic_shapes=shapes).module()


def continued(module: nn.Module, recipe: Recipe = QUICK, batch_size: int = 16) -> Continued:
    return Continued(module, Classification(), *data(batch_size), recipe)


def test_every_output_of_a_row_is_of_the_model_that_did_not_see_it() -> None:
    fit = Recorder()
    held_out = read_halves(fit, STRATA, repeats=4, seed=0)
    assert (held_out.train_out[..., 0] == 0).all()
    assert held_out.train_out.shape == (4, N, 2)
    for r, seen in enumerate(held_out.queries[..., 0]):
        counts = [int((seen == model).sum()) for model in (2 * r + 1, 2 * r + 2)]
        assert sum(counts) == len(seen), "one model a repeat for each query"
        assert abs(counts[0] - counts[1]) <= 1, "each model for half of the queries"
    assert held_out.note == "recorded"


def test_both_models_of_a_repeat_share_the_rows_out_between_them() -> None:
    fit = Recorder()
    held_out = read_halves(fit, STRATA, repeats=3, seed=0)
    for r in range(3):
        a, b = fit.halves[2 * r : 2 * r + 2]
        assert sorted([*a, *b]) == list(range(N))
        assert set(held_out.train_out[r, :, 1]) == {2 * r + 1, 2 * r + 2}
    assert len(set(fit.seeds)) == 6, "no two models are trained with the same randomness"


def test_a_seed_repeats_the_halves_and_another_draws_anew() -> None:
    first, again, other = Recorder(), Recorder(), Recorder()
    for fit, seed in ((first, 3), (again, 3), (other, 4)):
        read_halves(fit, STRATA, repeats=2, seed=seed)
    assert first.seeds == again.seeds
    assert all(map(np.array_equal, first.halves, again.halves))
    assert not all(map(np.array_equal, first.halves, other.halves))
    assert set(first.seeds).isdisjoint(other.seeds)


def test_progress_counts_every_fit() -> None:
    steps: list[int] = []
    read_halves(Recorder(), STRATA, repeats=2, seed=0, progress=steps.append)
    assert steps == [1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_each_half_holds_half_of_every_class_give_or_take_a_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    strata = rng.choice(["a", "b", "c", "rare"], size=200, p=[0.5, 0.3, 0.19, 0.01])
    first = halve(strata, rng)
    assert abs(first.sum() - 100) <= 1
    for name in set(strata):
        inside, outside = first[strata == name].sum(), (~first)[strata == name].sum()
        assert abs(int(inside) - int(outside)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_row_are_never_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 200)
    strata = rng.integers(0, 3, 60)[groups]
    first = halve(strata, rng, groups)
    for group in set(groups):
        assert len(set(first[groups == group])) == 1
    assert 0.3 < first.mean() < 0.7


@pytest.mark.parametrize("make", [network, exported], ids=["plain", "exported"])
def test_half_models_learn_their_half_and_leave_the_audited_model_alone(make: object) -> None:
    module = make()  # type: ignore[operator]
    before = copy.deepcopy(module.state_dict())
    recipe = replace(QUICK, epochs=8, rates=(3e-2,))
    held_out = read_halves(continued(module, recipe), STRATA, repeats=1, seed=0)

    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (held_out.train_out[0].argmax(1) == STRATA).mean() > 0.6


@pytest.mark.parametrize("make", [network, exported], ids=["plain", "exported"])
def test_batch_norm_trains_with_the_statistics_of_the_half(make: object) -> None:
    # Unless its buffers follow, a model logged after other data answers with their scale.
    module = make()  # type: ignore[operator]
    names = [name for name in module.state_dict() if name.endswith("running_mean")]
    fit = continued(module)
    model = fit._fit(np.arange(N), 0, "fresh", 1e-2)
    assert names
    for name in names:
        assert not torch.equal(model.state_dict()[name], module.state_dict()[name])


@pytest.mark.parametrize("make", [network, exported], ids=["plain", "exported"])
def test_a_seed_repeats_the_outputs_and_the_callers_random_state_is_untouched(
    make: object,
) -> None:
    module = make()  # type: ignore[operator]
    state, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = read_halves(continued(module), STRATA, repeats=2, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)

    torch.manual_seed(99)  # nor does the caller's state decide anything
    again = read_halves(continued(module), STRATA, repeats=2, seed=5)
    np.testing.assert_array_equal(first.train_out, again.train_out)
    np.testing.assert_array_equal(first.queries, again.queries)
    other = read_halves(continued(module), STRATA, repeats=2, seed=6)
    assert not np.array_equal(first.train_out, other.train_out)


def test_another_seed_trains_the_same_rows_in_another_way() -> None:
    module = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K)).eval()
    first, again, other = (continued(module)(np.arange(20), seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_half_models_answer_in_evaluation_mode() -> None:
    fit = continued(network())
    model = fit._fit(np.arange(20), 0, "fresh", 1e-2)
    assert not any(part.training for part in model.modules())


def test_a_model_that_takes_single_rows_only_trains_row_by_row() -> None:
    module = torch.export.export(network(), (torch.randn(1, D),)).module()
    held_out = read_halves(continued(module, batch_size=1), STRATA, repeats=1, seed=0)
    assert np.isfinite(held_out.train_out).all()
    assert held_out.queries.shape == (1, M, K)


def test_steps_do_not_depend_on_how_many_rows_fit_on_the_device() -> None:
    module = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K)).eval()
    whole = continued(module, batch_size=100)(np.arange(20), 0)[0]
    parts = continued(module, batch_size=3)(np.arange(20), 0)[0]
    np.testing.assert_allclose(parts, whole, atol=1e-3)


def test_the_rate_is_chosen_once_by_the_loss_on_the_queries() -> None:
    recipe = replace(QUICK, epochs=10, rates=(1e-9, 1e-2, 1e4))
    fit = continued(network(), recipe)
    fit(np.arange(0, N, 2), 0)
    assert "peak rate of 0.01," in fit.note
    fit(np.arange(1, N, 2), 1)
    assert "peak rate of 0.01," in fit.note


def test_a_memorized_wrong_label_is_not_remembered_by_models_that_did_not_see_it() -> None:
    # Fresh weights are the default for it: from the audited ones the label would come along.
    torch.manual_seed(0)
    x = torch.randn(120, D)
    truth = (x[:, 0] > 0).long()
    labels = truth.clone()
    wrong = torch.arange(0, 120, 12)
    labels[wrong] = 1 - labels[wrong]
    module = nn.Sequential(nn.Linear(D, 128), nn.ReLU(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()
    assert (module(x).argmax(1) == labels).all(), "the model knows every wrong label by heart"

    queries = torch.randn(60, D)
    device = torch.device("cpu")
    fit = Continued(
        module.eval(),
        Classification(),
        Tensors(x, labels, device, 64),
        Tensors(queries, (queries[:, 0] > 0).long(), device, 64),
        Recipe(rates=(1e-2,)),
    )
    held_out = read_halves(fit, labels.numpy(), repeats=3, seed=0)
    answers = special.softmax(held_out.train_out, axis=-1).mean(0).argmax(1)
    assert "fresh weights" in fit.note
    assert (answers[wrong] == truth[wrong].numpy()).mean() >= 0.8


def test_a_model_that_cannot_be_trained_anew_starts_from_its_own_weights() -> None:
    # A good model and far too few steps to become one again.
    torch.manual_seed(0)
    module = nn.Linear(D, 2)
    with torch.no_grad():
        module.weight.zero_()
        module.weight[1, 0], module.weight[0, 0] = 10, -10
        module.bias.zero_()
    train, queries = (replace(t, targets=(t.inputs[:, 0] > 0).long()) for t in data())
    fit = Continued(module, Classification(), train, queries, replace(QUICK, rates=(1e-9,)))
    fit(np.arange(N), 0)
    assert "may still remember wrong labels" in fit.note


def test_fresh_weights_do_not_depend_on_the_audited_ones() -> None:
    one, other = network(), network()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    recipe = replace(QUICK, epochs=1)
    models = [continued(m, recipe)._fit(np.arange(N), 0, "fresh", 1e-2) for m in (one, other)]
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(a, b)


def test_a_rate_that_diverges_is_never_chosen_over_one_that_does_not() -> None:
    fit = continued(network(), replace(QUICK, rates=(1e30, 1e-3)))
    train, _ = fit(np.arange(N), 0)
    assert "peak rate of 0.001," in fit.note
    assert np.isfinite(train).all()


def test_shrinking_makes_the_model_forget_but_spares_vectors_and_frozen_parameters() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    recipe = Recipe(shrink=0.5, noise=0.0, epochs=1, rates=(1e-30,), weight_decay=0)
    model = continued(module, recipe)._fit(np.arange(N), 0, "shrunk", 1e-30)
    torch.testing.assert_close(model[4].weight, module[4].weight * 0.5)
    torch.testing.assert_close(model[4].bias, module[4].bias)
    torch.testing.assert_close(model[0].weight, module[0].weight)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 17, 25])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_batch_norm_never_meets_a_row_alone(n: int, batch_size: int) -> None:
    # A batch of one has no variance: plain modules raise, exported ones turn to NaN.
    for module in (network(), exported()):
        model = continued(module, batch_size=batch_size)._fit(np.arange(n), 0, "fresh", 1e-2)
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_outputs_that_are_no_numbers_are_told_from_those_that_are() -> None:
    good = np.zeros((1, 2, 2), dtype=np.float32)
    bad = np.full_like(good, np.nan)
    assert HeldOut(good, good, "").diverged is None
    for pair in ((bad, good), (good, bad), (good, bad * np.inf)):
        assert "NaN or infinity" in str(HeldOut(*pair, "").diverged)


def test_a_regression_module_gives_one_number_a_row() -> None:
    torch.manual_seed(0)
    train, queries = (replace(d, targets=d.inputs.sum(1)) for d in data())
    fit = Continued(
        nn.Linear(D, 1), Regression(), train, queries, replace(QUICK, epochs=30, rates=(0.1,))
    )
    held_out = read_halves(fit, np.zeros(N), repeats=1, seed=0)
    error = held_out.train_out[0, :, 0] - train.targets.numpy()
    assert np.mean(error**2) < np.var(train.targets.numpy())


def test_settings_describe_the_recipe_in_plain_values() -> None:
    assert describe(QUICK) == {
        "skill": 0.8,
        "shrink": 0.5,
        "noise": 0.1,
        "epochs": 2,
        "epochs_of_denoisers": 100,
        "batch_size": 8,
        "rates": [1e-2],
        "rates_of_transformers": [1e-4, 3e-4, 1e-3, 3e-3],
        "weight_decay": 1e-4,
    }


def frame(n: int) -> pd.DataFrame:
    train, queries = data()
    return pd.DataFrame((train if n == N else queries).inputs.numpy(), columns=list("abcd"))


WORDS = np.array(["ape", "bee", "cat"])


def test_refitted_answers_are_log_probabilities_in_the_audited_order_of_classes() -> None:
    estimator = make_pipeline(StandardScaler(), LogisticRegression())
    estimator.fit(frame(N), WORDS[STRATA])
    fit = Refitted(estimator, frame(N), WORDS[STRATA], frame(M), WORDS)
    train, queries = fit(np.arange(0, N, 2), 0)
    np.testing.assert_allclose(np.exp(train).sum(1), 1, rtol=1e-5)
    assert (train.argmax(1) == STRATA).mean() > 0.8
    assert queries.shape == (M, K)

    twin = make_pipeline(StandardScaler(), LogisticRegression())
    twin.fit(frame(N).iloc[::2], WORDS[STRATA[::2]])
    np.testing.assert_allclose(special.softmax(train, 1), twin.predict_proba(frame(N)), atol=1e-6)


def test_a_class_that_a_half_lacks_is_all_but_impossible_there() -> None:
    estimator = LogisticRegression().fit(frame(N), WORDS[STRATA])
    fit = Refitted(estimator, frame(N), WORDS[STRATA], frame(M), WORDS)
    train, _ = fit(np.flatnonzero(STRATA != 1), 0)
    assert np.isfinite(train).all()
    assert (np.exp(train[:, 1]) < 1e-30).all()
    assert (train[STRATA == 2].argmax(1) == 2).mean() > 0.8


def test_refitting_leaves_the_audited_estimator_alone_and_repeats_with_its_seed() -> None:
    estimator = MLPClassifier((4,), max_iter=3, random_state=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(frame(N), WORDS[STRATA])
    before = estimator.predict_proba(frame(M))
    fit = Refitted(estimator, frame(N), WORDS[STRATA], frame(M), WORDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is the user told of fits that are not the model's
        first, again, other = (fit(np.arange(30), seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(estimator.predict_proba(frame(M)), before)
    assert estimator.random_state == 7


def test_columns_are_taken_by_the_names_that_the_estimator_was_fitted_on() -> None:
    estimator = LogisticRegression().fit(frame(N)[["d", "a", "b"]], WORDS[STRATA])
    shuffled, other = frame(N)[["c", "b", "a", "d"]], frame(M)[["a", "d", "c", "b"]]
    fit = Refitted(estimator, shuffled, WORDS[STRATA], other, WORDS)
    expected = Refitted(
        estimator, frame(N)[["d", "a", "b"]], WORDS[STRATA], frame(M)[["d", "a", "b"]], WORDS
    )
    for found, wanted in zip(fit(np.arange(30), 0), expected(np.arange(30), 0), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_arrays_are_refitted_as_they_are_and_regressors_give_one_number_a_row() -> None:
    train, queries = (d.inputs.numpy() for d in data())
    target = train.sum(1)
    fit = Refitted(LinearRegression().fit(train, target), train, target, queries, None)
    found, of_queries = fit(np.arange(20), 0)
    assert (found.shape, of_queries.shape) == ((N, 1), (M, 1))
    np.testing.assert_allclose(found[:, 0], target, atol=1e-4)


def test_a_refit_neither_talks_nor_writes_where_the_model_wishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, D)), np.arange(60) % 2
    cache = tmp_path / "cache"
    model = Pipeline(
        [("scale", StandardScaler()), ("net", MLPClassifier((4,), max_iter=3, verbose=True))],
        memory=str(cache),
        verbose=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(memory=None).fit(x, y)
    model.set_params(memory=str(cache))
    capsys.readouterr()
    Refitted(model, x, y, x, np.array([0, 1]))(np.arange(30), 2**33)
    assert capsys.readouterr().out == ""
    assert not cache.exists()


def test_an_estimator_that_cannot_be_fitted_on_a_half_says_so_in_one_line() -> None:
    x, y = np.random.default_rng(0).normal(size=(20, D)), np.array([0] * 19 + [1])
    model = LogisticRegression().fit(x, y)
    with pytest.raises(DataError, match="give more distinct rows a class"):
        Refitted(model, x, y, x, np.array([0, 1]))(np.arange(10), 0)
