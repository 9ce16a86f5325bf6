"""Classical models of scikit-learn, fitted on its own data, by the converter skl2onnx."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.zoo.case import Case, Given

# name → (module of sklearn, class, arguments)
CLASSIFIERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LogisticRegression": ("linear_model", "LogisticRegression", {"max_iter": 1000}),
    "LinearSVC": ("svm", "LinearSVC", {}),
    "SVC, linear": ("svm", "SVC", {"kernel": "linear"}),
    "SVC, rbf": ("svm", "SVC", {}),
    "SVC, poly, probabilities": ("svm", "SVC", {"kernel": "poly", "probability": True}),
    "NuSVC, sigmoid": ("svm", "NuSVC", {"kernel": "sigmoid", "nu": 0.1}),
    "MLPClassifier": (
        "neural_network", "MLPClassifier", {"hidden_layer_sizes": (16,), "max_iter": 50}),
    "SGDClassifier": ("linear_model", "SGDClassifier", {"random_state": 0}),
    "Perceptron": ("linear_model", "Perceptron", {}),
    "RidgeClassifier": ("linear_model", "RidgeClassifier", {}),
    "LinearDiscriminantAnalysis": ("discriminant_analysis", "LinearDiscriminantAnalysis", {}),
    "GaussianNB": ("naive_bayes", "GaussianNB", {}),
    "RandomForestClassifier": ("ensemble", "RandomForestClassifier", {"n_estimators": 4}),
}  # fmt: skip
REGRESSORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LinearRegression": ("linear_model", "LinearRegression", {}),
    "Ridge": ("linear_model", "Ridge", {}),
    "Lasso": ("linear_model", "Lasso", {}),
    "LinearSVR": ("svm", "LinearSVR", {}),
    "SVR, rbf": ("svm", "SVR", {}),
    "OneClassSVM": ("svm", "OneClassSVM", {}),
    "MLPRegressor": (
        "neural_network", "MLPRegressor", {"hidden_layer_sizes": (16,), "max_iter": 50}),
    "RandomForestRegressor": ("ensemble", "RandomForestRegressor", {"n_estimators": 4}),
}  # fmt: skip
TABLES = {"iris": "load_iris", "digits": "load_digits", "two classes": "load_breast_cancer"}
SCALED = ("LogisticRegression", "MLPClassifier", "Ridge")
QUICK = {"LogisticRegression on iris", "MLPClassifier on iris", "Ridge on diabetes"}


def cases() -> Iterator[Case]:
    """Classifiers on three tables, regressors on one; some behind a StandardScaler, some raw."""
    for name in CLASSIFIERS:
        for table in TABLES:
            if table == "iris" or name in ("LogisticRegression", "LinearSVC", "MLPClassifier"):
                yield case(f"{name} on {table}", fitted_classifier, name, table)
    for name in REGRESSORS:
        yield case(f"{name} on diabetes", fitted_regressor, name)
    for name in SCALED:
        maker = fitted_regressor if name in REGRESSORS else fitted_classifier
        yield case(f"StandardScaler, {name}", partial(scaled, maker), name)
    for name in ("LogisticRegression", "SVC, linear", "MLPClassifier"):
        yield case(f"{name}, no ZipMap", fitted_classifier, name, zipmap=False)


def case(called: str, maker: Callable[..., Any], *arguments: Any, zipmap: bool = True) -> Case:
    """A case of a fitted model."""
    make = partial(given, partial(maker, *arguments), zipmap)
    return Case(called, "skl2onnx", make, called in QUICK)


def estimator(table: dict[str, tuple[str, str, dict[str, Any]]], name: str) -> Any:
    """A model, not fitted."""
    module, kind, arguments = table[name]
    return part_of(module, kind)(**arguments)


def part_of(module: str, name: str) -> Any:
    """A class or function of scikit-learn, which is imported here: it takes a second."""
    return getattr(importlib.import_module(f"sklearn.{module}"), name)


def fitted_classifier(name: str, table: str = "iris", *before: Any) -> tuple[Any, Any]:
    """(model, two rows) of a table of classes."""
    x, y = part_of("datasets", TABLES[table])(return_X_y=True)
    return fit(estimator(CLASSIFIERS, name), before, x, y), x[:2]


def fitted_regressor(name: str, *before: Any) -> tuple[Any, Any]:
    """(model, two rows) of the diabetes table."""
    x, y = part_of("datasets", "load_diabetes")(return_X_y=True)
    return fit(estimator(REGRESSORS, name), before, x, y), x[:2]


def scaled(maker: Callable[..., Any], name: str) -> Any:
    """The same behind a StandardScaler."""
    table = () if maker is fitted_regressor else ("iris",)
    return maker(name, *table, part_of("preprocessing", "StandardScaler")())


def fit(model: Any, before: tuple[Any, ...], x: Any, y: Any) -> Any:
    """Fit a pipeline, seeded."""
    whole = part_of("pipeline", "make_pipeline")(*before, model) if before else model
    if "random_state" in model.get_params():
        model.set_params(random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: the weights need not be good ones
        return whole.fit(x, y)


def given(maker: Callable[[], tuple[Any, Any]], zipmap: bool, folder: Path) -> Given:
    """A fitted model on disk."""
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    model, rows = maker()
    options = None if zipmap else {"zipmap": False}
    types = [("X", FloatTensorType([None, rows.shape[1]]))]
    path = folder / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter reads attributes that scikit-learn leaves
        onnx.save(skl2onnx.convert_sklearn(model, initial_types=types, options=options), path)
    return Given(path, {"X": rows.astype(np.float32)})
