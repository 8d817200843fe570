from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from sklearn.linear_model import LogisticRegression
from torch import nn

from forward_inf_mlflow.errors import ModelError, TrackingError, UnsafeModelError
from forward_inf_mlflow.mlflow_errors import environment, redact, translate_errors
from forward_inf_mlflow.models.mlmodel import read_flavor
from forward_inf_mlflow.registry import Version, load, resolve

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def log_estimator(name: str = "m", **options: object) -> str:
    estimator = LogisticRegression().fit(X, Y)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            estimator, name="model", registered_model_name=name, pip_requirements=[], **options
        )
    return str(info.model_id)


@pytest.mark.usefixtures("store")
def test_a_version_is_found_by_number_padded_number_and_alias() -> None:
    model_id = log_estimator()
    MlflowClient().set_registered_model_alias("m", "champion", "1")
    found = resolve("models:/m/1")
    assert found == resolve("models:/m/01") == resolve("models:/m@champion")
    assert (found.uri, found.version, found.model_id) == ("models:/m/1", "1", model_id)
    assert found.run_id is not None
    assert found.creation_timestamp > 0


@pytest.mark.usefixtures("store")
def test_copies_of_copies_lead_to_the_logged_model() -> None:
    model_id = log_estimator()
    client = MlflowClient()
    client.copy_model_version("models:/m/1", "copy")
    client.copy_model_version("models:/copy/1", "copy-of-copy")
    found = resolve("models:/copy-of-copy/1")
    assert found.model_id == model_id
    assert load(found).task == "classification"


@pytest.mark.usefixtures("store")
def test_a_copy_whose_original_was_deleted_has_no_logged_model() -> None:
    log_estimator()
    MlflowClient().copy_model_version("models:/m/1", "copy")
    MlflowClient().delete_registered_model("m")
    assert resolve("models:/copy/1").model_id is None


@pytest.mark.usefixtures("store")
def test_a_version_of_plain_files_has_no_logged_model(tmp_path: Path) -> None:
    path = str(tmp_path / "plain")
    mlflow.sklearn.save_model(LogisticRegression().fit(X, Y), path, pip_requirements=[])
    MlflowClient().create_registered_model("plain")
    MlflowClient().create_model_version("plain", path)
    assert resolve("models:/plain/1").model_id is None
    assert load(resolve("models:/plain/1")).kind == "sklearn"


@pytest.mark.parametrize(
    "uri",
    [
        "m/1",
        "models:/m",
        "models:/m/latest",
        "models:/m/0",
        "models:/m/Staging",
        "models:/m/1/x",
        "runs:/a/model",
        "models:/m-0123456789",
        "models:/m/١",
        "models:/m@a@b",
        "models:/",
    ],
)
def test_any_other_address_is_refused_with_what_to_write(uri: str) -> None:
    with pytest.raises(ModelError, match=r"models:/NAME/3 or models:/NAME@ALIAS") as caught:
        resolve(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("store")
def test_what_is_missing_is_answered_with_what_exists() -> None:
    with pytest.raises(ModelError, match=r"no registered model 'absent'.*It knows no models"):
        resolve("models:/absent/1")
    log_estimator()
    MlflowClient().set_registered_model_alias("m", "champion", "1")
    with pytest.raises(ModelError, match=r"no registered model 'absent'.*'m'"):
        resolve("models:/absent@champion")
    with pytest.raises(ModelError, match=r"Known versions: 1.*m@champion"):
        resolve("models:/m/7")
    with pytest.raises(ModelError, match=r"Known versions: 1.*m@champion"):
        resolve("models:/m@challenger")


@pytest.mark.usefixtures("store")
def test_a_prompt_is_no_model() -> None:
    mlflow.genai.register_prompt("greeting", "Hello {{name}}")
    with pytest.raises(ModelError, match=r"prompt|no registered model|no 'models"):
        resolve("models:/greeting/1")


class _Refusing(http.server.BaseHTTPRequestHandler):
    answer = (403, b"Invalid Host header - possible DNS rebinding attack detected")

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ((403, b"Invalid Host header"), "--allowed-hosts"),
        ((403, b"Permission denied"), "ask for permission"),
        ((404, b"<html>nothing here</html>"), "no MLflow server"),
        ((401, b"You are not authenticated"), "MLFLOW_TRACKING_USERNAME"),
    ],
    ids=["unknown host", "forbidden", "another server", "no login"],
)
def test_a_refusing_server_is_explained(answer: tuple[int, bytes], advice: str) -> None:
    handler = type("Handler", (_Refusing,), {"answer": answer})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        mlflow.set_tracking_uri(f"http://me:hunter2@127.0.0.1:{server.server_port}")
        with pytest.raises(TrackingError, match=advice) as caught:
            resolve("models:/m/1")
    finally:
        server.shutdown()
        server.server_close()
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("store")
def test_an_unreachable_server_is_said_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://me:hunter2@127.0.0.1:9")
    with pytest.raises(TrackingError, match="cannot be reached") as caught:
        resolve("models:/m/1")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"cannot be used|refuses"), translate_errors():
        MlflowClient(f"sqlite:///{tmp_path}/file/mlflow.db").search_experiments()


def test_asking_about_versions_does_not_import_torch() -> None:
    check = "import sys, forward_inf_mlflow.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_redacting_leaves_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-123")
    text = redact("postgresql://u:p@ss@host/db?password=abc&x=1\nBearer tok-123")
    assert text == "postgresql://***@host/db?password=***&x=1 Bearer ***"


def test_the_environment_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARD_INF_A", "before")
    with pytest.raises(ZeroDivisionError), environment(FORWARD_INF_A="x", FORWARD_INF_B="y"):
        raise ZeroDivisionError
    assert os.environ["FORWARD_INF_A"] == "before"
    assert "FORWARD_INF_B" not in os.environ


@pytest.mark.usefixtures("store")
def test_code_paths_and_pickles_need_permission(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("raise SystemExit('ran')")
    log_estimator("code", code_paths=[str(tmp_path / "helper.py")])
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        load(resolve("models:/code/1"))
    assert load(resolve("models:/code/1"), allow_pickle=True).kind == "sklearn"
    log_estimator("pickled", serialization_format="cloudpickle")
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        load(resolve("models:/pickled/1"))
    assert load(resolve("models:/pickled/1"), allow_pickle=True).kind == "sklearn"


@pytest.mark.usefixtures("store")
def test_loading_leaves_the_pickle_setting_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    log_estimator()
    load(resolve("models:/m/1"))
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" not in os.environ


@pytest.mark.usefixtures("store")
def test_models_from_code_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import mlflow\n"
        "class M(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: list[str]) -> list[str]: return model_input\n"
        "mlflow.models.set_model(M())\n"
    )
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model", python_model=str(script), registered_model_name="s", pip_requirements=[]
        )
    with pytest.raises(UnsafeModelError, match="script"):
        load(resolve("models:/s/1"))


def test_another_library_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {xgboost: {data: model.xgb}}")
    with pytest.raises(ModelError, match=r"xgboost.*mlflow.pytorch"):
        read_flavor(tmp_path)


@pytest.mark.usefixtures("store")
def test_a_version_without_its_files_is_a_model_error(tmp_path: Path) -> None:
    gone = Version("m", "1", 0, "", None, None)
    with pytest.raises(ModelError):
        load(gone)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "\0",
        "a: &a [*a]",
        "flavors: 3",
        "flavors: {pytorch: 3}",
        "flavors: {pytorch: {}}",
        "flavors: {pytorch: {model_data: 3}}",
        "flavors: {pytorch: {model_data: absent}}",
        "flavors: {pytorch: {model_data: ../outside}}",
        "flavors: {pytorch: {model_data: link}}",
        "flavors: {sklearn: {pickled_model: /etc/passwd}}",
        "flavors: {sklearn: {pickled_model: inside, serialization_format: [1]}}",
        "flavors: !!python/object:os.system {}",
    ],
)
def test_a_damaged_or_hostile_mlmodel_is_a_model_error(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.pt2").write_text("x")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "inside").write_text("x")
    (folder / "MLmodel").write_text(content)
    with pytest.raises(ModelError) as caught:
        read_flavor(folder)
    assert "\n" not in str(caught.value)


def test_a_data_folder_with_both_formats_counts_as_pickled(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "model.pt2").write_text("x")
    (data / "model.pth").write_text("x")
    (tmp_path / "MLmodel").write_text(
        yaml.safe_dump({"flavors": {"pytorch": {"model_data": "data"}}})
    )
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        read_flavor(tmp_path)


@pytest.mark.usefixtures("store")
def test_a_pickled_torch_module_loads_in_evaluation_mode_with_permission() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            module,
            name="model",
            serialization_format="pickle",
            registered_model_name="p",
            pip_requirements=[],
        )
    version = resolve("models:/p/1")
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        load(version)
    model = load(version, allow_pickle=True)
    assert (model.kind, model.module.training) == ("pickle", False)
    assert model.features is not None
    inputs = torch.as_tensor(model.prepare(X))
    torch.testing.assert_close(model.module[2](model.features(inputs)), model.module(inputs))  # type: ignore[operator, index]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("postgresql://u:pa/hunter2@h/db", "postgresql://***@h/db"),
        ("x?sslpassword=hunter2&name=ok", "x?sslpassword=***&name=ok"),
        ("x?api_key=hunter2", "x?api_key=***"),
        ("x?AWSAccessKeyId=hunter2", "x?AWSAccessKeyId=***"),
        ("models:/m@champion", "models:/m@champion"),
    ],
)
def test_what_opens_a_store_is_never_shown(text: str, kept: str) -> None:
    assert redact(text) == kept
