from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    SplineTransformer,
    StandardScaler,
)

from forward_inf_mlflow.errors import DataError, ModelError, UnsafeModelError
from forward_inf_mlflow.models import transform
from forward_inf_mlflow.models.estimator import TRUSTED, audited_estimator, read_skops
from forward_inf_mlflow.models.parity import check_parity
from forward_inf_mlflow.registry import load_folder

warnings.filterwarnings("ignore", module="sklearn")
DIGITS = load_digits(return_X_y=True, n_class=4)
CANCER = load_breast_cancer(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)

CLASSIFIERS = {
    "logistic": LogisticRegression(max_iter=20),
    "logistic without bias": LogisticRegression(max_iter=20, fit_intercept=False),
    "sgd": SGDClassifier(loss="log_loss", max_iter=20, random_state=0),
    "mlp adam": MLPClassifier((6, 5), max_iter=3, random_state=0),
    "mlp sgd tanh": MLPClassifier(5, "tanh", solver="sgd", max_iter=3, random_state=0),
    "mlp logistic": MLPClassifier(5, "logistic", max_iter=3, random_state=0),
    "mlp identity": MLPClassifier(5, "identity", max_iter=3, early_stopping=True, random_state=0),
}
REGRESSORS = {
    "linear": LinearRegression(),
    "linear without bias": LinearRegression(fit_intercept=False),
    "ridge": Ridge(),
    "mlp": MLPRegressor(hidden_layer_sizes=6, max_iter=3, random_state=0),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scaled(estimator: Any) -> Any:
    return make_pipeline(
        StandardScaler(), "passthrough", make_pipeline(SelectKBest(k=8), estimator)
    )


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "in a pipeline"])
@pytest.mark.parametrize("data", [DIGITS, CANCER], ids=["4 classes", "2 classes"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_softmax_of_the_rebuilt_classifier_is_predict_proba(
    name: str, data: tuple[np.ndarray, np.ndarray], piped: bool
) -> None:
    X, y = data[0][:200] / 16, np.array(["a", "b", "c", "d"])[data[1][:200]]
    estimator = scaled(CLASSIFIERS[name]) if piped else CLASSIFIERS[name]
    estimator.fit(X, y)
    model = audited_estimator(estimator)
    logits = model.module(torch.as_tensor(model.prepare(X)))
    np.testing.assert_allclose(
        logits.softmax(1).detach().numpy(), estimator.predict_proba(X), atol=1e-12
    )
    assert check_parity(model, X) <= 1e-12
    assert (model.task, model.kind, model.max_batch) == ("classification", "sklearn", None)
    assert model.classes is not None
    assert model.classes.tolist() == sorted(set(y))
    assert logits.dtype == torch.float64


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "in a pipeline"])
@pytest.mark.parametrize("name", REGRESSORS)
def test_the_rebuilt_regressor_predicts_the_same(name: str, piped: bool) -> None:
    X, y = DIABETES[0][:200], DIABETES[1][:200] * 1e4
    estimator = scaled(REGRESSORS[name]) if piped else REGRESSORS[name]
    estimator.fit(X, y)
    model = audited_estimator(estimator)
    values = model.module(torch.as_tensor(model.prepare(X)))
    np.testing.assert_allclose(values.detach().numpy(), estimator.predict(X), rtol=1e-9)
    assert values.shape == (200,)
    assert check_parity(model, X) <= 1e-9
    assert (model.task, model.classes) == ("regression", None)


def test_liblinear_is_supported_for_two_classes() -> None:
    estimator = LogisticRegression(solver="liblinear").fit(CANCER[0], CANCER[1])
    assert check_parity(audited_estimator(estimator), CANCER[0]) <= 1e-12


def test_a_regressor_fitted_on_one_target_column_is_supported() -> None:
    estimator = LinearRegression().fit(DIABETES[0], DIABETES[1][:, None])
    assert check_parity(audited_estimator(estimator), DIABETES[0]) <= 1e-9


@pytest.mark.parametrize("name", ["mlp adam", "logistic"])
def test_the_last_layer_on_the_features_gives_the_scores(name: str) -> None:
    X, y = DIGITS[0][:100], DIGITS[1][:100]
    estimator = CLASSIFIERS[name].fit(X, y)
    model = audited_estimator(estimator)
    assert model.features is not None
    inputs = torch.as_tensor(model.prepare(X))
    seen = model.features(inputs)
    assert seen.shape == (100, 5 if name == "mlp adam" else 64)
    last = list(model.module.modules())[-1]
    torch.testing.assert_close(last(seen), model.module(inputs))


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (KNeighborsClassifier(2), "KNeighborsClassifier is not supported"),
        (SGDClassifier(), "SGDClassifier with loss 'hinge' is not supported"),
        (make_pipeline(StandardScaler(), KNeighborsClassifier(2)), "KNeighborsClassifier"),
    ],
    ids=["neighbours", "hinge", "neighbours in a pipeline"],
)
def test_other_estimators_are_refused_with_what_is_supported(estimator: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=f"{reason}.*LogisticRegression"):
        audited_estimator(estimator.fit(*CANCER))


def test_several_outputs_of_networks_are_refused() -> None:
    estimator = MLPRegressor(hidden_layer_sizes=3, max_iter=2)
    estimator.fit(DIABETES[0], np.stack([DIABETES[1]] * 2, axis=1))
    with pytest.raises(ModelError, match="supported"):
        audited_estimator(estimator)
    multilabel = MLPClassifier(3, max_iter=2).fit(CANCER[0], np.stack([CANCER[1]] * 2, axis=1))
    with pytest.raises(ModelError, match="supported"):
        audited_estimator(multilabel)


def test_a_regressor_with_a_log_link_is_refused() -> None:
    estimator = MLPRegressor(hidden_layer_sizes=3, max_iter=2)
    estimator.fit(*DIABETES).out_activation_ = "exp"  # what loss="poisson" fits
    with pytest.raises(ModelError, match="MLPRegressor is not supported"):
        audited_estimator(estimator)


def test_a_subclass_is_refused_since_it_may_predict_otherwise() -> None:
    class Own(LogisticRegression):
        pass

    with pytest.raises(ModelError, match="Own is not supported"):
        audited_estimator(Own().fit(*CANCER))


@pytest.mark.parametrize("estimator", [LogisticRegression(), MLPClassifier(), Ridge()], ids=str)
def test_an_estimator_that_is_not_fitted_is_refused(estimator: Any) -> None:
    with pytest.raises(ModelError, match="not fitted"):
        audited_estimator(estimator)


# Rows


def frame() -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(0)
    numbers = random.normal(size=(60, 2))
    kind = random.choice(["u", "v", "w"], 60)
    return pd.DataFrame({"p": numbers[:, 0], "q": numbers[:, 1], "kind": kind}), (
        numbers[:, 0] > 0
    ).astype(int)


def mixed() -> Any:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    return make_pipeline(
        ColumnTransformer(
            [
                ("numbers", numbers, make_column_selector(dtype_include=float)),
                ("kinds", OneHotEncoder(handle_unknown="ignore"), ["kind"]),
            ],
            sparse_threshold=1.0,
        ),
        LogisticRegression(),
    )


def test_columns_are_found_by_name_and_others_are_dropped() -> None:
    X, y = frame()
    model = audited_estimator(mixed().fit(X, y))
    shuffled = X.assign(extra="x")[["extra", "kind", "q", "p"]]
    np.testing.assert_array_equal(model.prepare(shuffled), model.prepare(X))
    assert model.prepare(X).shape == (60, 5)
    assert check_parity(model, shuffled) <= 1e-12


def test_missing_columns_are_named() -> None:
    X, y = frame()
    model = audited_estimator(mixed().fit(X, y))
    with pytest.raises(DataError, match="'q', 'kind'"):
        model.prepare(X[["p"]])


def test_an_array_stands_for_named_columns_by_position() -> None:
    X, y = frame()
    numbers = X[["p", "q"]]
    model = audited_estimator(make_pipeline(StandardScaler(), LogisticRegression()).fit(numbers, y))
    np.testing.assert_array_equal(model.prepare(numbers.to_numpy()), model.prepare(numbers))
    with pytest.raises(DataError, match=r"takes 2 columns.*\(3,\)"):
        model.prepare(np.zeros((4, 3)))


def test_a_frame_serves_an_estimator_fitted_on_arrays_if_its_columns_count() -> None:
    model = audited_estimator(LogisticRegression(max_iter=5).fit(*CANCER))
    np.testing.assert_array_equal(model.prepare(pd.DataFrame(CANCER[0])), CANCER[0])
    with pytest.raises(DataError, match="takes 30 columns and the data has 2"):
        model.prepare(pd.DataFrame(CANCER[0][:, :2]))


def test_images_serve_an_estimator_fitted_on_flat_rows() -> None:
    X, y = DIGITS[0][:100], DIGITS[1][:100]
    model = audited_estimator(LogisticRegression(max_iter=5).fit(X, y))
    np.testing.assert_array_equal(model.prepare(X.reshape(100, 8, 8)), X)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "Row 3, column 'q', is nan"), (np.inf, "Row 3, column 'q', is inf")],
    ids=["nan", "inf"],
)
@pytest.mark.parametrize("piped", [False, True], ids=["alone", "in a pipeline"])
def test_a_value_that_is_not_finite_is_named(value: float, reason: str, piped: bool) -> None:
    X, y = frame()
    X = X[["p", "q"]]
    estimator = make_pipeline(StandardScaler(), LogisticRegression()) if piped else Ridge()
    model = audited_estimator(estimator.fit(X, y))
    X.loc[3, "q"] = value
    with pytest.raises(DataError, match=reason):
        model.prepare(X)


def test_text_where_numbers_are_expected_is_named() -> None:
    X, y = frame()
    model = audited_estimator(
        make_pipeline(StandardScaler(), LogisticRegression()).fit(X[["p", "q"]], y)
    )
    spoilt = X.astype({"q": object})
    spoilt.loc[2, "q"] = "many"
    with pytest.raises(DataError, match=r"'q' holds text.*row 2.*'many'"):
        model.prepare(spoilt)


def test_missing_values_that_the_pipeline_fills_are_no_error() -> None:
    X, y = frame()
    model = audited_estimator(mixed().fit(X, y))
    X.loc[3, "q"] = np.nan
    assert np.isfinite(model.prepare(X)).all()
    X.loc[3, "p"] = np.inf
    with pytest.raises(DataError, match="infinity"):
        model.prepare(X)


def test_one_column_of_text_serves_a_vectoriser(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["good day", "bad night", "good night", "bad day"] * 5
    model = audited_estimator(
        make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0] * 5)
    )
    expected = model.prepare(np.array(texts))
    assert expected.shape == (20, 4)
    np.testing.assert_array_equal(model.prepare(pd.DataFrame({"text": texts})), expected)
    with pytest.raises(DataError, match="one column of text"):
        model.prepare(pd.DataFrame({"a": texts, "b": texts}))
    monkeypatch.setattr(transform, "_DENSE_LIMIT", 100)
    with pytest.raises(DataError, match="--max-rows"):
        model.prepare(np.array(texts))


# Files


@pytest.mark.parametrize("name", ["logistic", "mlp adam", "mlp sgd tanh", "mixed"])
def test_a_logged_estimator_loads_with_no_permission(name: str, tmp_path: Path) -> None:
    X, y = frame()
    X = X if name == "mixed" else X[["p", "q"]]
    estimator = (mixed() if name == "mixed" else CLASSIFIERS[name]).fit(X, y)
    mlflow.sklearn.save_model(
        estimator, str(tmp_path / "m"), skops_trusted_types=list(TRUSTED), pip_requirements=[]
    )
    model = load_folder(tmp_path / "m")
    assert check_parity(model, X) <= 1e-12
    assert type(model.estimator) is type(estimator)


def test_usual_transformers_need_no_permission(tmp_path: Path) -> None:
    X, y = CANCER[0][:100], CANCER[1][:100]
    for step in (SplineTransformer(), KBinsDiscretizer(3), SimpleImputer(), SelectKBest(k=3)):
        estimator = make_pipeline(step, LogisticRegression(max_iter=5)).fit(X, y)
        skops.io.dump(estimator, tmp_path / "model.skops")
        assert check_parity(audited_estimator(read_skops(tmp_path / "model.skops")), X) <= 1e-9


def own_step(X: np.ndarray) -> np.ndarray:
    return X * 2


def test_types_that_only_the_model_itself_trusts_need_permission(tmp_path: Path) -> None:
    estimator = make_pipeline(FunctionTransformer(own_step), LogisticRegression(max_iter=5))
    trusted = [f"{__name__}.own_step"]
    mlflow.sklearn.save_model(
        estimator.fit(*CANCER),
        str(tmp_path / "m"),
        skops_trusted_types=trusted,
        pip_requirements=[],
    )
    with pytest.raises(UnsafeModelError, match=r"own_step.*--allow-pickle"):
        load_folder(tmp_path / "m")
    model = load_folder(tmp_path / "m", allow_pickle=True)
    assert check_parity(model, CANCER[0]) <= 1e-9


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"\x80\x04."])
def test_a_damaged_skops_file_is_a_model_error(content: bytes, tmp_path: Path) -> None:
    mlflow.sklearn.save_model(
        LogisticRegression().fit(*frame_numbers()), str(tmp_path / "m"), pip_requirements=[]
    )
    (tmp_path / "m" / "model.skops").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_folder(tmp_path / "m")
    assert "\n" not in str(caught.value)


def frame_numbers() -> tuple[pd.DataFrame, np.ndarray]:
    X, y = frame()
    return X[["p", "q"]], y
