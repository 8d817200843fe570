"""Attributing: from a registered diffusion model to the training images behind generated ones."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import one_line, run_here
from diffusion import (
    LEFT,
    SCHEDULE,
    SIDE,
    STEPS,
    WIDTH,
    Conditional,
    Linear,
    N,
    Unconditional,
    images,
    register,
    register_folder,
    save_pipeline,
    signed,
    taught,
)
from mlflow import MlflowClient
from PIL import Image

from forward_inf_mlflow import attribute
from forward_inf_mlflow.diffusion.attributing import Attribution
from forward_inf_mlflow.tasks import Denoising

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
#: A plain step, which costs next to nothing.
FAST = ("--direction", "gradient")


def save(folder: Path, name: str, x: np.ndarray, **more: Any) -> str:
    np.savez(folder / name, x=x, **more)
    return str(folder / name)


@pytest.fixture(scope="module")
def made(shared_store: Path) -> str:
    """Return three images that look like those of the first, the second, and the first kind."""
    x, y = images(7, 3)
    return save(shared_store, "made.npz", x, y=y)


@pytest.fixture(scope="module")
def train(shared_store: Path) -> str:
    x, _ = images()
    names = np.array([f"<b>{i}" for i in range(N)])
    return save(shared_store, "train.npz", x, ids=names, sources=np.array(["l", "r"] * (N // 2)))


@pytest.fixture(scope="module")
def plain(shared_store: Path, train: str) -> str:
    """Return an unconditional version whose run logged its training images."""
    data = mlflow.data.from_numpy(images()[0].reshape(N, -1), source=train, name="pictures")
    module = taught(Unconditional())
    return register(module, "plain", metadata={"noise_schedule": SCHEDULE}, data=data)


@pytest.fixture(scope="module")
def conditional(shared_store: Path) -> str:
    """Return a conditional version that does not say its schedule."""
    return register(taught(Conditional()), "conditional", metadata=None)


@pytest.fixture(scope="module")
def attributed(plain: str, made: str) -> Attribution:
    return attribute(plain, generated=made, top=5)


@pytest.fixture(scope="module")
def stepped(plain: str, made: str) -> Attribution:
    return attribute(plain, generated=made, top=5, direction="gradient")


def kinds(found: pd.DataFrame, query: str, kind: str = "proponent") -> list[int]:
    """Return on which side the rows are bright, best first."""
    mine = found[(found["query_id"] == query) & (found["kind"] == kind)]
    return [int(str(name).removeprefix("<b>")) % 2 for name in mine["train_id"]]


def test_images_of_the_same_kind_come_first(attributed: Attribution) -> None:
    for query, side in (("0", 0), ("1", 1), ("2", 0)):
        assert kinds(attributed.influence, query) == [side] * 5
    positive = attributed.influence["influence"] > 0
    assert (positive == (attributed.influence["kind"] == "proponent")).all()


def test_what_is_logged_is_whole_and_linked(attributed: Attribution, tmp_path: Path) -> None:
    client = MlflowClient()
    run = client.get_run(attributed.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["forward_inf.kind"] == "attribution"
    assert "pictures" in [d.dataset.name for d in run.inputs.dataset_inputs]
    place = client.download_artifacts(attributed.run_id, "forward_inf_attribution", str(tmp_path))
    names = {"attribution.json", "attribution.html", "attribution.parquet"}
    assert {f.name for f in Path(place).iterdir()} == names
    record = json.loads((Path(place) / "attribution.json").read_text())
    assert record["data"]["train"]["origin"] == "logged"
    assert record["costs"]["rows"] == N
    assert record["attribution"]["direction"] == "curvature"
    assert "the version's metadata (cosine, 20 steps)" in " ".join(record["notes"])
    table = pd.read_parquet(Path(place) / "attribution.parquet")
    assert table["influence"].tolist() == attributed.influence["influence"].tolist()
    page = (Path(place) / "attribution.html").read_text()
    assert page.count('aria-label="generated image"') == 3
    assert "data:image/png;base64," in page
    assert "&lt;b&gt;" in page
    assert "<code><b>" not in page
    assert "<script" not in page


def test_the_command_says_it_and_its_line_repeats_it(attributed: Attribution) -> None:
    again = run_here(*shlex.split(attributed.record["repeat"])[1:], "--json")
    assert (again.returncode, again.stderr) == (0, "")
    found = json.loads(again.stdout)
    first = attributed.influence.iloc[0]
    assert found["answers"][0]["proponents"][0]["id"] == first["train_id"]
    assert found["answers"][0]["proponents"][0]["influence"] == first["influence"]
    assert MlflowClient().get_run(found["run_id"]).info.status == "FINISHED"


def test_a_conditional_model_is_told_labels_and_its_schedule(
    conditional: str, made: str, tmp_path: Path
) -> None:
    x, y = images()
    rows = save(tmp_path, "rows.npz", x, y=y)
    asked = ("attribute", conditional, "--generated", made, "--train", rows, *FAST)
    shown = run_here(*asked, "--schedule", "cosine", "--steps", str(STEPS), "--top", "3")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "generated image 1, label 1: loss" in shown.stdout
    assert "note: noise schedule: cosine, 20 steps" in shown.stdout
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps({"alphas_cumprod": LEFT.tolist()}))
    again = run_here(*asked, "--schedule", str(file), "--json")
    answers = json.loads(again.stdout)["answers"]
    assert [row["label"] for row in answers[1]["proponents"][:3]] == [1, 1, 1]


def test_influence_on_a_linear_denoiser_is_the_closed_form(
    shared_store: Path, made: str, train: str
) -> None:
    module = taught(Linear(), steps=20)
    uri = register(module, "linear", metadata={"noise_schedule": SCHEDULE})
    found = attribute(uri, generated=made, train=train, top=N)
    weights = module.all.weight.detach().double()
    noise = np.random.default_rng([0, 0]).standard_normal((1, SIDE, SIDE), np.float32)
    times, d = found.record["settings"]["times"], SIDE * SIDE

    def seen(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model sees of images at every time, and its mistakes."""
        left = LEFT[times].double().numpy()[None, :, None]
        clean = signed(x).flatten(1).double().numpy()[:, None]
        noised = np.sqrt(left) * clean + np.sqrt(1 - left) * noise.reshape(1, 1, -1)
        return noised, noised @ weights.numpy().T - noise.reshape(1, 1, -1)

    left = LEFT[times].double().numpy()
    share = np.minimum(5, (1 - left) / left) * 2 / (len(times) * d)
    (x, mistake), (asked, asked_mistake) = seen(images()[0]), seen(images(7, 3)[0])
    gradients, queries = (
        np.einsum("t,nti,ntj->nij", share, m, a).reshape(len(a), -1)
        for m, a in ((mistake, x), (asked_mistake, asked))
    )
    outer = np.einsum("t,nti,ntj->ij", share, x, x) / N
    curvature = np.kron(np.eye(d), outer)
    damping = Denoising.damping * np.trace(curvature) / d**2
    expected = queries @ np.linalg.solve(curvature + damping * np.eye(d**2), gradients.T) / N
    for query in range(3):
        mine = found.influence[found.influence["query_id"] == str(query)]
        rows = [int(name.removeprefix("<b>")) for name in mine["train_id"]]
        np.testing.assert_allclose(
            mine["influence"], expected[query, rows], rtol=0.02, atol=0.02 * np.abs(expected).max()
        )
        assert len(rows) == N


def test_only_the_named_parameters_move(plain: str, made: str) -> None:
    asked = ("attribute", plain, "--generated", made, "--parameters", "last*", *FAST)
    found = run_here(*asked, "--json")
    record = json.loads(found.stdout)
    assert found.returncode == 0, found.stderr
    last = WIDTH * 9 + 1
    assert "--parameters 'last*'" in record["repeat"]
    run = MlflowClient().download_artifacts(record["run_id"], "forward_inf_attribution")
    settings = json.loads((Path(run) / "attribution.json").read_text())["settings"]
    assert settings["moved"] == last


def test_pictures_in_folders_are_read_as_their_numbers_are(
    plain: str, tmp_path: Path, stepped: Attribution
) -> None:
    x, _ = images(7, 3)
    for i, picture in enumerate(x):
        Image.fromarray(picture).convert("RGB").save(tmp_path / f"{i}.png")
    found = attribute(plain, generated=str(tmp_path), top=5, direction="gradient")
    first, same = found.influence.iloc[0], stepped.influence.iloc[0]
    assert first["query_id"] == "0.png"
    assert (first["train_id"], first["influence"]) == (same["train_id"], same["influence"])


def test_pixels_from_0_to_1_are_scaled_where_that_is_said(
    plain: str, tmp_path: Path, stepped: Attribution
) -> None:
    x, _ = images(7, 3)
    unit = save(tmp_path, "unit.npz", x.astype(np.float32)[..., None] / 255)
    refused = run_here("attribute", plain, "--generated", unit)
    assert refused.returncode == 2
    assert "--pixels signed" in one_line(refused.stderr)
    found = attribute(plain, generated=unit, pixels="signed", top=5, direction="gradient")
    assert found.influence["train_id"].tolist() == stepped.influence["train_id"].tolist()


def test_a_unet_of_diffusers_is_read_with_its_scheduler(
    shared_store: Path, made: str, train: str, tmp_path: Path
) -> None:
    save_pipeline(tmp_path / "pipeline", attention=True)
    uri = register_folder(tmp_path / "pipeline", "pipeline")
    found = attribute(
        uri, generated=made, train=train, direction="gradient", parameters="*to_k*,*to_v*", top=5
    )
    assert found.record["model"]["kind"] == "diffusers"
    assert found.record["settings"]["moved"] > 0
    assert "the version's scheduler, 20 steps" in " ".join(found.record["notes"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)
        missing = run_here("attribute", uri, "--generated", made, "--train", train)
    assert missing.returncode == 2
    assert "pip install 'forward-inf-mlflow[diffusion]'" in one_line(missing.stderr)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no such parameter": (["--parameters", "attn*"], "no parameter is called like 'attn*'"),
    "steps alone": (["--steps", "5"], "name it with --schedule too"),
    "no steps": (["--schedule", "linear"], "needs its number of steps: give --steps"),
    "no such schedule": (["--schedule", "linaer"], "neither cosine nor linear nor a JSON file"),
    "no such array": (["--images", "z"], "--images names 'z'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_is_said_in_one_line(case: str, plain: str, made: str) -> None:
    words, message = REFUSED[case]
    found = run_here("attribute", plain, "--generated", made, *words)
    assert found.returncode == 2
    assert message in one_line(found.stderr)


def test_a_missing_schedule_and_missing_labels_are_named(
    conditional: str, made: str, train: str
) -> None:
    asked = ("attribute", conditional, "--generated", made, "--train", train)
    found = run_here(*asked)
    assert found.returncode == 2
    assert "does not say its noise schedule: say it with --schedule" in one_line(found.stderr)
    found = run_here(*asked, "--schedule", "cosine", "--steps", "20")
    assert "have none: add an array y" in one_line(found.stderr)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: (f / "a.png").write_bytes(b"\x89PNG no"), "'a.png' does not decode"),
        (lambda f: Image.new("L", (5, 4)).save(f / "a.png"), "images of 4 x 5"),
        (lambda f: (f / "a.txt").write_text("x"), "no picture in this folder"),
        (lambda f: np.savez(f / "a.npz", x=np.zeros((2, 9, 9))), "holds images of 9 x 9"),
        (lambda f: np.savez(f / "a.npz", x=np.full((2, 4, 4), np.nan)), "no number"),
        (lambda f: np.savez(f / "a.npz", x=np.full((2, 4, 4), 999)), "no pixels from 0 to 255"),
        (lambda f: np.savez(f / "a.npz", x=np.array(["a", "b"])), "are no images"),
        (lambda f: np.savez(f / "a.npz", a=np.zeros(2), b=np.zeros(2)), "Name it with --images"),
    ],
)
def test_images_that_do_not_fit_are_named(
    write: Any, message: str, plain: str, tmp_path: Path
) -> None:
    write(tmp_path)
    archive = tmp_path / "a.npz"
    given = str(archive if archive.exists() else tmp_path)
    found = run_here("attribute", plain, "--generated", given, *FAST)
    assert found.returncode == 2
    assert message in one_line(found.stderr)


def test_a_few_damaged_training_pictures_are_left_out_and_named(
    plain: str, made: str, tmp_path: Path
) -> None:
    for i, picture in enumerate(images()[0]):
        Image.fromarray(picture).save(tmp_path / f"{i:02}.png")
    (tmp_path / "30.png").write_bytes(b"none")
    asked = ("attribute", plain, "--generated", made, "--train", str(tmp_path), *FAST)
    found = run_here(*asked)
    assert (found.returncode, found.stderr) == (0, "")
    assert "1 training picture does not decode: '30.png'" in found.stdout
    for i in range(31, 34):
        (tmp_path / f"{i}.png").write_bytes(b"none")
    found = run_here(*asked)
    assert "4 of 34 pictures do not decode" in one_line(found.stderr)


def test_an_interrupted_run_goes_on_with_the_same_numbers(
    plain: str, made: str, tmp_path: Path, stepped: Attribution
) -> None:
    asked: dict[str, Any] = {"generated": made, "top": 5, "direction": "gradient"}
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(*_: object) -> str:
            raise KeyboardInterrupt

        patch.setattr("forward_inf_mlflow.diffusion.attributing.render_attribution", interrupt)
        with pytest.raises(KeyboardInterrupt):
            attribute(plain, **asked, work_dir=tmp_path)
    found = attribute(plain, **asked, work_dir=tmp_path)
    assert found.record["resumed_pieces"] > 0
    assert found.influence.equals(stepped.influence)
    assert not any(file.suffix == ".npz" for file in tmp_path.rglob("*"))
