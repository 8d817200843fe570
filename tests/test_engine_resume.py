"""An interrupted computation goes on where it was, and ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import Setting, influence, setting
from torch import Tensor, nn

from forward_inf_mlflow.directions import Curvature, Direction, GradientStep, Replay
from forward_inf_mlflow.influence import Influence
from forward_inf_mlflow.shards import WorkFolder

DIRECTIONS: dict[str, Direction] = {
    "gradient": GradientStep(),
    "fisher": Curvature(solver="fisher"),
    "cg": Curvature(solver="cg"),
    "sketch": Curvature(solver="sketch", rank=4),
    "replay": Replay(most_steps=4, most_seeds=2, batch=8),
}
each = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=list(DIRECTIONS))
#: Rows of a shard: four shards of 24 rows.
SHARD = 6


class Interrupted(BaseException):
    """The machine stops here."""


class Recording:
    """A work folder that says which pieces were made, and stops before or while it makes one."""

    def __init__(self, root: Path, stop: str | None = None) -> None:
        self.inner = WorkFolder.open(root, {"what": "test"})
        self.stop, self.made = stop, list[str]()

    def once(
        self, name: str, make: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        def recorded() -> Mapping[str, np.ndarray]:
            if name == self.stop:
                raise Interrupted
            arrays = make()
            self.made.append(name)
            return arrays

        return self.inner.once(name, recorded)


class Counting(nn.Module):
    """Counts the rows that are read."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        output: Tensor = self.inner(x)
        return output


@cache
def cached() -> Setting:
    found = setting("classification", batch_size=SHARD)
    return replace(found, module=Counting(found.module))


def ask(direction: Direction, work: Any) -> Influence:
    return influence(cached(), direction, shard_rows=SHARD, work=work, method="difference")


def same(one: Influence, other: Influence) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in (
            (one.scores.values, other.scores.values),
            (one.loss, other.loss),
            (one.margin, other.margin),
        )
    )


def pieces(direction: Direction, root: Path) -> list[str]:
    work = Recording(root)
    ask(direction, work)
    return work.made


@each
def test_stopped_before_some_piece_and_run_again_it_gives_the_same_bits(
    direction: Direction, tmp_path: Path
) -> None:
    whole = ask(direction, None)
    names = pieces(direction, tmp_path / "whole")
    assert sum(name.startswith("shards/") for name in names) == 4
    for k, name in enumerate(names[::3]):
        root = tmp_path / str(k)
        stopped = Recording(root, stop=name)
        with pytest.raises(Interrupted):
            ask(direction, stopped)
        again = Recording(root)
        assert same(ask(direction, again), whole)
        assert stopped.made + again.made == names  # what was finished is not made again


@each
def test_stopped_time_and_again_it_gives_the_same_bits(
    direction: Direction, tmp_path: Path
) -> None:
    whole, names = ask(direction, None), pieces(direction, tmp_path / "whole")
    made = []
    for name in names[1:]:
        work = Recording(tmp_path / "again", stop=name)
        with pytest.raises(Interrupted):
            ask(direction, work)
        made += work.made
    work = Recording(tmp_path / "again")
    assert same(ask(direction, work), whole)
    assert made + work.made == names


@each
def test_in_the_middle_of_a_shard_no_more_than_that_shard_is_read_again(
    direction: Direction, tmp_path: Path
) -> None:
    module = cached().module
    assert isinstance(module, Counting)
    ask(direction, Recording(tmp_path / "finished"))
    before = module.rows
    whole = ask(direction, Recording(tmp_path / "finished"))
    kept = module.rows - before  # what a run costs that finds everything done

    stopping = Recording(tmp_path / "stopped")
    plain = module.inner
    read = 0

    def fail_in_the_third_shard(_: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal read
        if sum(name.startswith("shards/") for name in stopping.made) == 2:
            read += 1
            if read == 2:
                raise Interrupted

    hook = plain.register_forward_pre_hook(fail_in_the_third_shard)
    with pytest.raises(Interrupted):
        ask(direction, stopping)
    hook.remove()

    before = module.rows
    again = Recording(tmp_path / "stopped")
    found = ask(direction, again)
    assert same(found, whole)
    assert len(again.made) == 2
    assert all(name.startswith("shards/") for name in again.made)
    reads = found.forward_passes // len(cached().rows)
    assert module.rows - before == kept + 2 * SHARD * reads


def test_a_shard_that_was_damaged_is_read_again(tmp_path: Path) -> None:
    direction = GradientStep()
    whole = ask(direction, Recording(tmp_path))
    damaged = sorted(Recording(tmp_path).inner.folder.glob("shards*"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-40] + bytes(40))
    again = Recording(tmp_path)
    assert same(ask(direction, again), whole)
    assert again.made == ["shards/difference/00000+3/000000006-000000012"]


def test_scores_for_many_groups_resume_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forward_inf_mlflow.directions.curvature._OWN", 0)
    monkeypatch.setattr("forward_inf_mlflow.directions.curvature._SHARED", 4)
    direction = Curvature(solver="fisher")
    whole, names = ask(direction, None), pieces(direction, tmp_path / "whole")
    assert names[:2] == ["spectrum", "sketch"]
    with pytest.raises(Interrupted):
        ask(direction, Recording(tmp_path, stop=names[3]))
    again = Recording(tmp_path)
    assert same(ask(direction, again), whole)
    assert again.made == names[3:]
    assert torch.isfinite(torch.as_tensor(whole.scores.values)).all()
