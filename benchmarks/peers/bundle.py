"""What is handed to a peer and what it hands back: the same for each.

Peers pull in what this project does not need, so they live in an environment of their own:

    python3.11 -m venv .venv-peers
    .venv-peers/bin/python -m pip install --constraint constraints.txt \\
        --requirement benchmarks/peers/requirements.txt

and are run one process each, on a bundle that :func:`write_bundle` wrote (or this module's command,
which trains the network first):

    python benchmarks/peers/bundle.py digits_mlp 0 BUNDLE
    .venv-peers/bin/python benchmarks/peers/tracin.py BUNDLE OUT.npz

``OUT.npz`` holds ``scores`` (q, n) float32, positive for a proponent; ``seconds``, the attribution
alone, all its factors included and no import or reading; ``note``, what was run at which settings;
``versions``, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

# A script finds its own folder; the settings lie one above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from settings import SETTINGS, Setting, SettingError, load

#: Scores ``(q, n)``, positive for a proponent, and a sentence on what was run.
Attribution = tuple[torch.Tensor, str]


def write_bundle(folder: Path, setting: Setting, module: nn.Module) -> None:
    """Write a trained network of a setting: its weights, and which setting it is of."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), folder / "model.pt")
    (folder / "bundle.json").write_text(json.dumps({"setting": setting.name}))


def open_bundle(folder: Path) -> tuple[Setting, nn.Module]:
    """Return the setting and the trained network of a bundle, in evaluation mode.

    Raises:
        SettingError: It is not a bundle, or its setting cannot be had.
    """
    if not (folder / "bundle.json").is_file():
        raise SettingError(f"{folder} is not a bundle: write one with peers/bundle.py")
    setting = load(json.loads((folder / "bundle.json").read_text())["setting"])
    module = setting.make(0)
    module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return setting, module.eval()


def run_peer(
    attribute: Callable[[Setting, nn.Module, argparse.Namespace], Attribution],
    *,
    packages: tuple[str, ...],
    parser: argparse.ArgumentParser,
) -> None:
    """Read the command line, attribute, and write what came out."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        setting, module = open_bundle(arguments.bundle)
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    torch.manual_seed(0)
    start = time.perf_counter()
    scores, note = attribute(setting, module, arguments)
    seconds = time.perf_counter() - start
    wanted = (len(setting.query_y), len(setting.train_y))
    if tuple(scores.shape) != wanted:
        parser.exit(1, f"the peer gave scores {tuple(scores.shape)}, not (q, n) = {wanted}\n")
    np.savez(
        arguments.out,
        scores=scores.detach().to(torch.float32).numpy(),
        seconds=seconds,
        note=f"{note}; {torch.get_num_threads()} threads",
        versions=json.dumps({name: version(name) for name in ("torch", *packages)}),
    )
    print(f"{parser.prog}: {setting.name} in {seconds:.1f} s ({note})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a network of a setting and bundle it.")
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        setting = load(arguments.setting)
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    write_bundle(arguments.folder, setting, setting.fit(None, arguments.seed))


if __name__ == "__main__":
    main()
