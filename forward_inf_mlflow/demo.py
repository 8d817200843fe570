"""The demo: a real data set is spoiled, the gate refuses it, is cleaned, and passes.

The handwritten digits that ship inside scikit-learn; a tenth of the training labels is flipped,
most of them in one of three invented sources, and 40 test rows are planted in the training set,
half as they are, half shifted by one pixel. What was planted is kept, to count afterwards what was
found.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import mlflow
import mlflow.pytorch
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from forward_inf_mlflow.auditing import AuditResult, audit
from forward_inf_mlflow.data.logging_data import log_training_data
from forward_inf_mlflow.decision import WORDS
from forward_inf_mlflow.detect.sources import guilty, sentence
from forward_inf_mlflow.progress import Progress
from forward_inf_mlflow.promotion import PromotionResult, promote

MODEL_NAME = "forward-inf-demo"
ALIAS = "champion"
#: Rows of each verdict that are told.
_WORST = 3
SOURCES = ("archive", "field-team", "vendor-x")
#: The source that most flipped labels come from.
GUILTY = "vendor-x"
#: Share of the labels that are flipped: far beyond the default policy, so that no luck passes them.
FLIPPED = 0.1


@dataclass(frozen=True)
class Data:
    """Training and test rows, and what was planted.

    Attributes:
        x, y: ``(n, 1, 8, 8)`` float32 images in [0, 1], ``(n,)`` labels of the training rows.
        ids, sources: ``(n,)`` strings.
        test_x, test_y: The query rows.
        flipped: ``(n,)`` bool, rows whose label was flipped.
        exact, shifted: ``(n,)`` bool, rows that are copies of test rows.
    """

    x: np.ndarray
    y: np.ndarray
    ids: np.ndarray
    sources: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    flipped: np.ndarray
    exact: np.ndarray
    shifted: np.ndarray

    def without(self, bad: np.ndarray) -> Data:
        """Return the data without some training rows."""
        keep = ~bad
        rows = ("x", "y", "ids", "sources", "flipped", "exact", "shifted")
        return replace(self, **{name: getattr(self, name)[keep] for name in rows})


@dataclass(frozen=True)
class Found:
    """What an audit found of what was planted, as shares; and what it accused besides."""

    flips: float
    exact: float
    shifted: float
    accused_clean: float


def digits(seed: int, *, spoiled: bool = True) -> Data:
    """Split the digits at random; flip labels and plant leaks if ``spoiled``."""
    rng = np.random.default_rng(seed)
    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    order = rng.permutation(len(images))
    train, test = order[:1200], order[1200:]
    x, y = images[train], bunch.target[train].astype(np.int64)
    test_x, test_y = images[test], bunch.target[test].astype(np.int64)
    sources = rng.choice(SOURCES, len(x))
    flipped = np.zeros(len(x), dtype=bool)
    exact, shifted = flipped.copy(), flipped.copy()
    if spoiled:
        count = round(FLIPPED * len(x))
        most = rng.choice(np.flatnonzero(sources == GUILTY), round(0.8 * count), replace=False)
        rest = rng.choice(np.flatnonzero(sources != GUILTY), count - len(most), replace=False)
        flipped[most] = flipped[rest] = True
        y[flipped] = (y[flipped] + rng.integers(1, 10, count)) % 10

        leaks = rng.choice(len(test_x), 40, replace=False)
        copies = test_x[leaks].copy()
        for i in range(20, 40):
            copies[i] = _shift(copies[i], *((0, 1), (1, 0), (0, -1), (-1, 0))[i % 4])
        x, y = np.concatenate([x, copies]), np.concatenate([y, test_y[leaks]])
        sources = np.concatenate([sources, rng.choice(SOURCES, 40)])
        exact, shifted, flipped = (
            np.concatenate([a, b])
            for a, b in (
                (exact, np.arange(40) < 20),
                (shifted, np.arange(40) >= 20),
                (flipped, np.zeros(40, dtype=bool)),
            )
        )
    mixed = rng.permutation(len(x))
    return Data(
        x=x[mixed],
        y=y[mixed],
        ids=np.array([f"digit-{i:04d}" for i in range(len(x))]),
        sources=sources[mixed],
        test_x=test_x,
        test_y=test_y,
        flipped=flipped[mixed],
        exact=exact[mixed],
        shifted=shifted[mixed],
    )


def _shift(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return a ``(1, 8, 8)`` image moved by whole pixels, black moving in."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    height, width = image.shape[1:]
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def train_model(images: np.ndarray, labels: np.ndarray, seed: int) -> nn.Module:
    """Train a small convolutional net, as anyone would."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    x, y = torch.as_tensor(images), torch.as_tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(20):
        for rows in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def register(data: Data, seed: int) -> tuple[str, float]:
    """Train, log and register a version with its data; return its URI and test accuracy."""
    model = train_model(data.x, data.y, seed)
    with torch.no_grad():
        answers = model(torch.as_tensor(data.test_x)).argmax(1).numpy()
    accuracy = float((answers == data.test_y).mean())
    with mlflow.start_run(run_name="train digits"):
        mlflow.log_metric("test_accuracy", accuracy)
        log_training_data(
            train=(data.x, data.y),
            queries=(data.test_x, data.test_y),
            ids=data.ids,
            sources=data.sources,
        )
        # MLflow prints to stderr that it registered; the story says so itself.
        with contextlib.redirect_stderr(io.StringIO()):
            info = mlflow.pytorch.log_model(
                model,
                name="model",
                input_example=data.x[:2],
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
                registered_model_name=MODEL_NAME,
            )
    return f"models:/{MODEL_NAME}/{info.registered_model_version}", accuracy


def compare(result: AuditResult, data: Data) -> Found:
    """Hold an audit's verdicts against what was planted."""
    scores = result.scores
    wrong, leaked = scores["mislabeled"].to_numpy(), scores["leaked"].to_numpy()
    clean = ~(data.flipped | data.exact | data.shifted)

    def share(found: np.ndarray, planted: np.ndarray) -> float:
        return float(found[planted].mean()) if planted.any() else 1.0

    return Found(
        flips=share(wrong, data.flipped),
        exact=share(leaked, data.exact),
        shifted=share(leaked, data.shifted),
        accused_clean=share(wrong | leaked, clean),
    )


#: Who shows what the mislabeled rows cause, as a user would name it.
TRAINER = f"{__name__}:train_model"


@dataclass(frozen=True)
class Story:
    """What the demo did: both audits, what the first one found, and the promotion."""

    spoiled: AuditResult
    cleaned: AuditResult
    found: Found
    accuracies: tuple[float, float]
    promotion: PromotionResult


def tell(seed: int, say: Callable[[str], None], progress: Progress | None = None) -> Story:
    """Run the story against the tracking server that MLflow is set to.

    Args:
        seed: Decides the split, what is planted, and the training.
        say: Called with each line.
        progress: As for :func:`forward_inf_mlflow.audit`.
    """
    data = digits(seed)
    say(
        f"1. Handwritten digits: {len(data.x):,} training rows, {len(data.test_x):,} test rows. "
        f"Planted: {data.flipped.sum()} flipped labels, most of them from '{GUILTY}', and "
        f"{data.exact.sum()} exact and {data.shifted.sum()} shifted copies of test rows."
    )
    uri, before = register(data, seed)
    say(f"2. Trained and registered {uri}: test accuracy {before:.1%}.")
    spoiled = audit(uri, seed=seed, trainer=TRAINER, progress=progress)
    found = compare(spoiled, data)
    say(f"3. Audited {uri}: {WORDS[spoiled.decision.outcome]}.")
    for reason in spoiled.decision.reasons:
        say(f"     {reason}")
    _say_rows(spoiled, say)
    _say_sources(spoiled, say)
    say(
        f"   Found of what was planted: {found.flips:.0%} of the flips, {found.exact:.0%} of the "
        f"exact leaks, {found.shifted:.0%} of the shifted ones; accused {found.accused_clean:.1%} "
        "of the clean rows."
    )
    bad = spoiled.scores["mislabeled"].to_numpy() | spoiled.scores["leaked"].to_numpy()
    cleaned_data = data.without(bad)
    cleaned_uri, after = register(cleaned_data, seed)
    say(
        f"4. Removed the {bad.sum()} accused rows, trained again and registered {cleaned_uri}: "
        f"test accuracy {after:.1%}, now measured on rows it has not seen."
    )
    cleaned = audit(cleaned_uri, seed=seed, progress=progress)
    say(f"   Audited {cleaned_uri}: {WORDS[cleaned.decision.outcome]}.")
    for reason in cleaned.decision.reasons:
        say(f"     {reason}")
    promotion = promote(cleaned_uri, alias=ALIAS)
    if promotion.gate.decision.allowed:
        was = f"version {promotion.before}" if promotion.before else "nothing"
        say(f"   Alias '{ALIAS}' moved from {was} to version {promotion.now}.")
    else:
        say(f"   Alias '{ALIAS}' was not moved.")
    return Story(spoiled, cleaned, found, (before, after), promotion)


def _say_rows(result: AuditResult, say: Callable[[str], None]) -> None:
    wrong, leaks = (
        result.flagged[result.flagged["verdict"] == verdict].head(_WORST)
        for verdict in ("mislabeled", "leaked")
    )
    say("   Worst rows:")
    for row in wrong.itertuples():
        say(
            f"     {row.row_id} from {row.source}: labeled {row.given_label}, likelier "
            f"{row.likelier_label} ({row.evidence})"
        )
    for row in leaks.itertuples():
        say(
            f"     {row.row_id} from {row.source}: holds the test row {row.query_id} "
            f"({row.kind}; {row.evidence})"
        )


def _say_sources(result: AuditResult, say: Callable[[str], None]) -> None:
    sources, overall = result.record["sources"], result.record["measures"]["mislabeled"]["rate"]
    say("   Sources, with 95 % intervals:")
    for source in sources:
        say(f"     {sentence(source)}")
    blamed = guilty(sources)
    for name in blamed:
        say(
            f"   To blame is '{name}': surely worse than all rows together "
            f"({overall:.1%} mislabeled)."
        )
    if not blamed:
        say(f"   No source is surely worse than all rows together ({overall:.1%} mislabeled).")
