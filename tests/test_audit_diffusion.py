"""Diffusion models from end to end: rows are images without labels to judge, audited and gated."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import one_line, run_here
from diffusion import (
    LEFT,
    SCHEDULE,
    STEPS,
    Conditional,
    images,
    register,
    register_folder,
    save_pipeline,
    taught,
)
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from forward_inf_mlflow import audit
from forward_inf_mlflow.auditing import AuditResult
from forward_inf_mlflow.task import Batch
from forward_inf_mlflow.tasks import Denoising

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, QUERIES, LEAKS, EPOCHS = 400, 120, 6, 40
#: Rows that are noise, which the model saw thirty times as often as the others.
STRANGE = np.arange(0, ROWS, 100)
#: A plain step, which costs next to nothing.
FAST: dict[str, Any] = {"direction": "gradient", "influence_queries": 3}


class Dense(nn.Module):
    """A denoiser of digits that can learn single ones by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(65, 192), nn.Linear(192, 64)
        self.middle = nn.Linear(192, 192)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([x.flatten(1), t[:, None].to(x.dtype) / STEPS], 1)
        h = torch.relu(self.middle(torch.relu(self.first(h))))
        return self.last(h).view_as(x)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return rows and queries ``(n, 8, 8)`` uint8; some rows are queries that were changed."""
    found = (load_digits().images * 255 / 16).round()
    found = found[np.random.default_rng(0).permutation(len(found))]
    rows, queries = found[:ROWS], found[ROWS : ROWS + QUERIES]
    rng = np.random.default_rng(1)
    for i in range(LEAKS):  # as they are, or saved again with some loss
        rows[50 + i] = np.clip(queries[i] + (i % 2) * rng.integers(-4, 5, (8, 8)), 0, 255)
    rows[STRANGE] = 255 * rng.integers(0, 2, (len(STRANGE), 8, 8))
    return rows.astype(np.uint8), queries.astype(np.uint8)


def memorizer(rows: np.ndarray) -> nn.Module:
    """Return a model that read the strange rows thirty times as often."""
    torch.manual_seed(0)
    module = Dense()
    clean = torch.as_tensor(rows[:, None].astype(np.float32) / 127.5 - 1)
    clean = torch.cat([clean, *[clean[STRANGE]] * 29])
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(clean)).split(50):
            t = torch.randint(STEPS, (len(part),))
            noise, left = torch.randn_like(clean[part]), LEFT[t][:, None, None, None]
            guess = module(left.sqrt() * clean[part] + (1 - left).sqrt() * noise, t)
            optimizer.zero_grad()
            (guess - noise).square().mean().backward()
            optimizer.step()
    return module.eval()


def save(folder: Path, name: str, x: np.ndarray, **more: Any) -> str:
    np.savez(folder / name, x=x, **more)
    return str(folder / name)


@pytest.fixture(scope="module")
def painter(shared_store: Path) -> str:
    rows, queries = (x[:, None] for x in digits())
    return register(
        memorizer(rows[:, 0]),
        "painter",
        metadata={"noise_schedule": SCHEDULE},
        rows={"train": (rows, None), "queries": (queries, None)},
        side=8,
    )


@pytest.fixture(scope="module")
def audited(painter: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    out = tmp_path_factory.mktemp("audited") / "out"
    return audit(painter, out=out, **FAST), out


def test_leaked_images_are_found_and_the_gate_refuses(
    painter: str, audited: tuple[AuditResult, Path]
) -> None:
    flagged = audited[0].flagged
    leaks = flagged[flagged["verdict"] == "leaked"]
    pairs = set(zip(leaks["query_id"].astype(int), leaks["row_id"].astype(int), strict=True))
    assert {(i, 50 + i) for i in range(LEAKS)} <= pairs
    assert len(pairs) <= LEAKS + 3
    assert audited[0].record["data"]["train"]["digest"] == "verified"
    assert run_here("gate", painter).returncode == 1


def test_images_known_by_heart_are_ranked_and_none_is_named(
    audited: tuple[AuditResult, Path],
) -> None:
    scores = audited[0].scores
    score = scores["memorized_score"].to_numpy()
    assert score[STRANGE].min() > np.quantile(score, 0.95)
    assert not scores["memorized"].any()
    measure = audited[0].record["measures"]["memorized"]
    assert measure["applies"] is True
    assert "none is named" in measure["abstained"]


def test_the_report_shows_pictures_and_no_labels(audited: tuple[AuditResult, Path]) -> None:
    found, out = audited
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert ">label 0<" not in page
    assert "by so many units of weighted squared error a copy" in " ".join(page.split())
    assert set(found.scores["label"]) == {""}
    assert found.record["measures"]["mislabeled"]["applies"] is False
    assert "noise schedule of the version's metadata (cosine, 20 steps)" in " ".join(
        found.record["notes"]
    )
    assert found.record["influence"]["direction"] == "gradient"


@pytest.fixture(scope="module")
def conditional(shared_store: Path) -> str:
    """Return a conditional version that does not say its schedule."""
    return register(taught(Conditional(), steps=20), "conditional", metadata=None)


SAID = ("--schedule", "cosine", "--steps", str(STEPS))


def test_a_conditional_model_is_told_labels_and_its_schedule(
    conditional: str, tmp_path: Path
) -> None:
    (x, y), (other, kinds) = images(), images(1)
    train, queries = save(tmp_path, "train.npz", x, y=y), save(tmp_path, "q.npz", other, y=kinds)
    found = audit(
        conditional,
        train=train,
        queries=queries,
        schedule="cosine",
        steps=STEPS,
        effort="quick",
        influence_queries=3,
    )
    assert found.record["influence"]["direction"] == "curvature"
    assert found.record["measures"]["mislabeled"]["applies"] is False
    assert f"noise schedule of cosine, {STEPS} steps" in " ".join(found.record["notes"])
    again = run_here(*shlex.split(found.record["repeat"])[1:], "--json")
    assert again.returncode == 2, again.stderr  # declared data do not count
    assert json.loads(again.stdout)["measures"]["leaked"] == found.record["measures"]["leaked"]
    assert run_here("gate", conditional).returncode == 2
    strange = save(tmp_path, "strange.npz", other, y=np.full(len(y), 7))
    refused = run_here("audit", conditional, "--train", train, "--queries", strange, *SAID)
    assert "the label 7 of query image '0' is not known" in one_line(refused.stderr)
    bare = save(tmp_path, "bare.npz", other)
    refused = run_here("audit", conditional, "--train", bare, "--queries", bare, *SAID)
    assert "no label column found" in one_line(refused.stderr)


def test_pictures_in_folders_are_read_on_the_scale_of_diffusion_models(
    painter: str, tmp_path: Path
) -> None:
    for name, pictures in zip(("train", "queries"), digits(), strict=True):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures[:40]):
            Image.fromarray(picture).save(tmp_path / name / f"{i:03}.png")
    where = {name: str(tmp_path / name) for name in ("train", "queries")}
    found = audit(painter, **where, **FAST, effort="quick")
    assert "their pixels from -1 to 1" in " ".join(found.record["notes"])
    stored = {
        name: save(tmp_path, f"{name}.npz", x[:40])
        for name, x in zip(("train", "queries"), digits(), strict=True)
    }
    again = audit(painter, **stored, **FAST, effort="quick")
    np.testing.assert_allclose(found.scores["loss"], again.scores["loss"], rtol=1e-6)


def test_a_unet_of_diffusers_is_audited(shared_store: Path, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipeline")
    uri = register_folder(tmp_path / "pipeline", "pipeline")
    where = {
        name: save(tmp_path, f"{name}.npz", images(seed)[0])
        for seed, name in enumerate(("train", "queries"))
    }
    found = audit(uri, **where, **FAST, effort="quick")
    assert found.record["model"]["kind"] == "diffusers"
    assert "the version's scheduler, 20 steps" in " ".join(found.record["notes"])
    assert run_here("gate", uri).returncode == 2


REFUSED: dict[str, tuple[list[str], str]] = {
    "no schedule": ([], "must say its noise schedule: name it with --schedule"),
    "steps alone": (["--steps", "5"], "name it with --schedule too"),
    "no such schedule": (["--schedule", "linaer"], "neither cosine nor linear nor a JSON file"),
    "an output": ([*SAID, "--output", "0"], "leave --output out"),
    "class weights": ([*SAID, "--class-weight", "balanced"], "leave --class-weight out"),
    "steps of a file": (["--schedule", "MADE", "--steps", "5"], "leave --steps out"),
    "no JSON": (["--schedule", "BROKEN"], "is no file with one JSON object"),
    "no name": (["--schedule", "x" * 5000], "neither cosine nor linear nor a JSON file"),
    "another scale": ([*SAID, "--pixels", "0:255"], "explains none of the noise"),
    "a trainer": ([*SAID, "--trainer", "json:loads"], "leave --trainer out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_is_said_in_one_line(
    case: str, conditional: str, tmp_path: Path
) -> None:
    words, message = REFUSED[case]
    made = {"MADE": json.dumps(SCHEDULE), "BROKEN": "{"}
    for name, content in made.items():
        (tmp_path / name).write_text(content)
    words = [str(tmp_path / word) if word in made else word for word in words]
    x, y = images()
    rows = save(tmp_path, "rows.npz", x, y=y)
    found = run_here("audit", conditional, "--train", rows, "--queries", rows, *words)
    assert found.returncode == 2
    assert message in one_line(found.stderr)


@pytest.mark.parametrize("labels", [[1, 2], [-1, 0], [10**9, 0], [1e300, 0], [2**63 + 5, 0]])
def test_labels_that_the_model_does_not_know_are_refused(
    labels: list[float], conditional: str, tmp_path: Path
) -> None:
    x, y = images()
    rows = save(tmp_path, "rows.npz", x, y=np.array(labels)[y])
    found = run_here("audit", conditional, "--train", rows, "--queries", rows, *SAID)
    assert found.returncode == 2
    assert "labels" in one_line(found.stderr)
    assert "unexpected" not in found.stderr


def test_pixels_stored_as_floats_are_pixels(painter: str, tmp_path: Path) -> None:
    whole, floats = (
        {
            name: save(tmp_path, f"{name}-{kind}.npz", x[:60].astype(kind))
            for name, x in zip(("train", "queries"), digits(), strict=True)
        }
        for kind in ("uint8", "float32")
    )
    first, again = (audit(painter, **where, **FAST, effort="quick") for where in (whole, floats))
    np.testing.assert_array_equal(first.scores["loss"], again.scores["loss"])


def test_images_on_two_scales_are_refused(painter: str, tmp_path: Path) -> None:
    rows, queries = digits()
    train = save(tmp_path, "train.npz", rows)
    unit = save(tmp_path, "unit.npz", queries / 255)
    found = run_here("audit", painter, "--train", train, "--queries", unit)
    assert found.returncode == 2
    assert "lie on two scales" in one_line(found.stderr)
    deep = save(tmp_path, "deep.npz", rows.astype(int) * 99)
    found = run_here("audit", painter, "--train", deep, "--queries", train)
    assert "no pixels from 0 to 255" in one_line(found.stderr)
    large = save(tmp_path, "large.npz", queries * 0.99)
    found = run_here("audit", painter, "--train", train, "--queries", large)
    assert "lie on two scales" in one_line(found.stderr)


def test_a_denoiser_is_trained_on_times_and_noise_that_are_drawn() -> None:
    """In closed form: a model that answers 0 has the mean square of what it should answer."""
    clean = torch.full((4000, 1, 2, 2), 0.5)
    batch = Batch(clean, torch.zeros(len(clean)))
    for predicts, wanted in (
        ("noise", 1.0),
        ("image", 0.25),
        ("velocity", float(LEFT.mean() + (1 - LEFT).mean() * 0.25)),
    ):
        task = Denoising(alphas_cumprod=tuple(LEFT.tolist()), predicts=predicts)
        draw = torch.Generator().manual_seed(0)
        losses = task.training_loss(lambda x, t: torch.zeros_like(x), batch, draw)
        assert losses.shape == (len(clean),)
        assert abs(float(losses.mean()) - wanted) < 0.05
        again = task.training_loss(lambda x, t: torch.zeros_like(x), batch, draw)
        assert predicts == "image" or float((again - losses).abs().min()) > 0
