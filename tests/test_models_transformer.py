"""Models of mlflow.transformers: loaded whole, from weights and words alone, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from texts import LIMIT, WORDS, gpt2, llama, save, tokenizer
from torch.func import functional_call, grad, jvp, vmap

from forward_inf_mlflow.errors import ForwardInfError, ModelError, UnsafeModelError
from forward_inf_mlflow.models import transformer
from forward_inf_mlflow.models.mlmodel import read_flavor
from forward_inf_mlflow.models.transformer import Transformer, read_transformer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 1, 1]])


def read(folder: Path, **permitted: bool) -> Transformer:
    return read_transformer(read_flavor(folder, **permitted), **permitted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(gpt2(), tmp_path_factory.mktemp("gpt2") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    adapted = get_peft_model(model, config)
    with torch.no_grad():  # else the adapter would add nothing, and its loss could go unseen
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return adapted.eval()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_language_model_answers_as_the_one_that_was_logged(make: Any, tmp_path: Path) -> None:
    model = make().eval()
    found = read(save(model, tmp_path / "model"))
    torch.testing.assert_close(found.module(IDS), model(input_ids=IDS).logits)
    assert (found.task, found.limit, found.vocabulary) == ("causal_lm", LIMIT, len(WORDS))
    assert found.tokenizer("ada lives")["input_ids"] == tokenizer()("ada lives")["input_ids"]
    assert not found.module.training


def test_it_can_be_differentiated_row_by_row_and_in_forward_mode(saved: Path) -> None:
    module = read(saved).module
    theta = {name: p.detach() for name, p in module.named_parameters()}

    def losses(parameters: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        return functional_call(module, parameters, (ids,)).logsumexp(-1).sum()  # type: ignore[no-any-return]

    rows = vmap(grad(lambda p, row: losses(p, row[None])), in_dims=(None, 0))(theta, IDS)
    along = {name: torch.ones_like(p) for name, p in theta.items()}
    _, pushed = jvp(lambda p: losses(p, IDS), (theta,), (along,))
    summed = sum(float(g.sum()) for g in rows.values())
    assert summed == pytest.approx(float(pushed), rel=1e-3)


def test_of_a_model_with_an_adapter_only_the_adapter_moves(tmp_path: Path) -> None:
    model = lora(gpt2())
    found = read(save(model, tmp_path / "model"))
    torch.testing.assert_close(found.module(IDS), model(input_ids=IDS).logits)
    moved = {name for name, p in found.module.named_parameters() if p.requires_grad}
    assert len(moved) == 4
    assert all("lora_" in name for name in moved)
    assert "is moved by its adapter alone" in found.notes[0]


def test_another_adapter_than_lora_is_refused(tmp_path: Path) -> None:
    folder = save(lora(gpt2()), tmp_path / "model")
    file = folder / "peft" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="IA3: of adapters, LoRA"):
        read(folder)


def test_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    found = read(save(gpt2().to(torch.bfloat16), tmp_path / "model"))
    assert found.module(IDS).dtype == torch.float32
    assert "half precision (bfloat16)" in found.notes[0]


def test_pickled_weights_need_permission(folder: Path) -> None:
    weights = folder / "model" / "model.safetensors"
    model = gpt2().eval()
    torch.save(model.state_dict(), weights.with_name("pytorch_model.bin"))
    assert read(folder)  # the safe ones are there, and are the ones that are read
    weights.unlink()
    with pytest.raises(UnsafeModelError, match=r"pickled \(pytorch_model.bin\).*--allow-pickle"):
        read(folder)
    found = read(folder, allow_pickle=True)
    torch.testing.assert_close(found.module(IDS), model(input_ids=IDS).logits)


def test_sizes_that_no_model_has_are_refused_before_there_is_room_for_them(folder: Path) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "n_positions": 50_000_000}))
    with pytest.raises(ModelError, match="n_positions is 5e\\+07, which no model has"):
        read(folder)


def test_weights_of_a_file_beside_it_do_not_permit_a_pickle(tmp_path: Path) -> None:
    folder = save(lora(gpt2()), tmp_path / "model")
    [adapter] = folder.rglob("adapter_model.safetensors")
    shutil.copy(adapter, adapter.with_name("other.safetensors"))
    adapter.rename(adapter.with_name("adapter_model.bin"))
    with pytest.raises(UnsafeModelError):
        read(folder)


@pytest.mark.parametrize(
    "named",
    ["../outside.safetensors", "{}/outside.safetensors", "weights.bin", "lost.safetensors", 3],
)
def test_an_index_of_weights_leads_to_safetensors_beside_it(
    named: str, folder: Path, tmp_path: Path
) -> None:
    weights = folder / "model" / "model.safetensors"
    names = list(gpt2().state_dict())
    shutil.copy(weights, tmp_path / "outside.safetensors")
    shutil.copy(weights, weights.with_name("weights.bin"))
    part = weights.rename(weights.with_name("model-00001-of-00001.safetensors"))
    index = weights.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, part.name)}))
    assert read(folder)
    said = named.format(tmp_path) if isinstance(named, str) else named
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, said)}))
    with pytest.raises(UnsafeModelError, match="no safetensors file beside it"):
        read(folder, allow_pickle=False)


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("model/config.json", "auto_map"),
        ("components/tokenizer/tokenizer_config.json", "auto_map"),
        ("model/config.json", "quantization_config"),
    ],
)
def test_code_of_the_models_own_never_runs(
    file: str, key: str, allowed: bool, folder: Path
) -> None:
    (folder / "model" / "evil.py").write_text("raise SystemExit('ran')")
    content = json.loads((folder / file).read_text())
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"}
    (folder / file).write_text(json.dumps(content | {key: auto, "model_type": "evil"}))
    with pytest.raises(ModelError, match=key):
        read(folder, allow_pickle=allowed)


def change(folder: Path, file: str, **changes: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))


def rewrite(folder: Path, old: str, new: str) -> None:
    text = (folder / "MLmodel").read_text()
    assert old in text
    (folder / "MLmodel").write_text(text.replace(old, new))


CONFIG = "model/config.json"
BROKEN = {
    "no tokenizer": (
        lambda f: rewrite(f, "components:\n    - tokenizer", "components: []"),
        "without its tokenizer",
    ),
    "a slow tokenizer": (
        lambda f: (f / "components/tokenizer/tokenizer.json").unlink(),
        "no tokenizer.json",
    ),
    "a damaged tokenizer": (
        lambda f: (f / "components/tokenizer/tokenizer.json").write_text("{}"),
        "tokenizer cannot be read",
    ),
    "a damaged config": (lambda f: (f / CONFIG).write_text("["), "config.json cannot be read"),
    "no config": (lambda f: (f / CONFIG).unlink(), "settings name a kind|cannot be read"),
    "an unknown kind": (lambda f: change(f, CONFIG, model_type="nope"), "settings name a kind"),
    "another task": (lambda f: change(f, CONFIG, architectures=["GPT2Model"]), "is a GPT2Model"),
    "more layers": (lambda f: change(f, CONFIG, n_layer=3), "lack 12 of its weights"),
    "another width": (lambda f: change(f, CONFIG, n_embd=16), "cannot be loaded"),
    "weights cut short": (
        lambda f: (f / "model/model.safetensors").write_bytes(b"\0" * 20),
        "cannot be loaded",
    ),
    "no weights": (lambda f: (f / "model/model.safetensors").unlink(), "no safetensors"),
    "weights elsewhere": (
        lambda f: rewrite(f, "model_binary: model", "x: y"),
        "not among its files",
    ),
    "weights outside": (
        lambda f: rewrite(f, "model_binary: model", "model_binary: ../.."),
        "leads out",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_said_in_one_line(case: str, folder: Path) -> None:
    spoil, message = BROKEN[case]
    spoil(folder)  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_named_with_how_to_install_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ForwardInfError, match=r"pip install 'forward-inf-mlflow\[transformers\]'"):
        read(saved)


def test_ids_that_the_model_does_not_know_are_refused() -> None:
    with pytest.raises(ForwardInfError, match="token 9, and the model's vocabulary has 9"):
        transformer.check_ids(torch.tensor([[1, 9]]), 9)
