"""Work folders: a piece is there whole or not at all, and what is returned never depends on it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from forward_inf_mlflow import shards
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.shards import WorkFolder, digest_arrays, digest_module
from forward_inf_mlflow.work import KEEP_NOTHING

KEY: dict[str, object] = {"model": "models:/größe/3", "settings": {"damping": 0.1}, "rows": [1, 2]}
ARRAYS: dict[str, np.ndarray] = {
    "losses": np.array([[1.5, np.nan, -0.0], [np.inf, 5e-324, 2.0]]),
    "zero dimensions": np.array(7, dtype=np.int16),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "file/name": np.array([True, False]),
    "ids": np.array(["a", "größer"]),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    "other end": np.arange(3, dtype=">i4"),
    "every second": np.arange(8)[::2],
}


def never() -> Mapping[str, np.ndarray]:
    pytest.fail("a finished piece was made again")


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(
        (a[k].dtype, a[k].shape, a[k].tobytes("A")) == (b[k].dtype, b[k].shape, b[k].tobytes("A"))
        for k in a
    )


def pieces(work: WorkFolder) -> list[Path]:
    return sorted(work.folder.glob("*.npz"))


def temporary(root: Path) -> list[Path]:
    return [*root.glob("*/.*.tmp"), *root.glob(".*.removed")]


def started(work: Callable[[], object]) -> int:
    """Run something in a process of its own; return its id."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process


def ended(process: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_piece_is_the_same_made_read_and_without_a_folder(tmp_path: Path) -> None:
    made = WorkFolder.open(tmp_path, KEY).once("all", lambda: ARRAYS)
    read = WorkFolder.open(tmp_path, KEY).once("all", never)
    bare = KEEP_NOTHING.once("all", lambda: ARRAYS)
    assert same(made, read)
    assert same(made, bare)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(made[name], array, strict=True)
    for one in (made, read, bare):
        for array in one.values():
            assert array.flags.writeable, "callers may go on with it"
    assert (
        WorkFolder.open(tmp_path, KEY).once("none", dict) == {} == KEEP_NOTHING.once("none", dict)
    )


def test_pieces_that_were_there_are_counted_and_not_made_again(tmp_path: Path) -> None:
    first = WorkFolder.open(tmp_path, KEY)
    assert first.done == 0
    for i in range(3):
        first.once(f"shards/{i:05d}", lambda i=i: {"x": np.array(i)})  # type: ignore[misc]
    second = WorkFolder.open(tmp_path, dict(reversed(KEY.items())))
    assert second.folder == first.folder, "the order of a key's entries means nothing"
    assert second.done == 3
    assert second.finished("shards/00002")
    assert not second.finished("shards/00003")
    assert int(second.once("shards/00002", never)["x"]) == 2
    assert json.loads((first.folder / "key.json").read_text("utf-8")) == KEY


def test_another_key_has_another_folder(tmp_path: Path) -> None:
    WorkFolder.open(tmp_path, KEY).once("a", lambda: {"x": np.array(1)})
    other = WorkFolder.open(tmp_path, KEY | {"rows": [2, 1]})
    assert other.done == 0
    assert not other.finished("a")


def test_the_makers_errors_pass_and_leave_nothing(tmp_path: Path) -> None:
    place = WorkFolder.open(tmp_path, KEY)

    def fails() -> Mapping[str, np.ndarray]:
        raise FileNotFoundError("a matter of the maker")

    with pytest.raises(FileNotFoundError, match="of the maker"):
        place.once("a", fails)
    with pytest.raises(TypeError, match="Python objects"):
        place.once("a", lambda: {"x": np.array([{}])})
    assert not place.finished("a")
    place.remove()
    assert place.done == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../x", "/etc/x", ".", "..", "", "a\0b", "\ud800", "x" * 999])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    work = WorkFolder.open(tmp_path / "root", KEY)
    work.once(name, lambda: {"x": np.array(1)})
    assert len(pieces(work)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"root"}
    assert same(WorkFolder.open(tmp_path / "root", KEY).once(name, never), {"x": np.array(1)})


def test_names_that_differ_are_different_files_even_where_case_means_nothing(
    tmp_path: Path,
) -> None:
    work = WorkFolder.open(tmp_path, KEY)
    names = ["a", "A", "a/b", "a%2Fb", "é", "e\u0301", "x" * 200, "x" * 201]
    for name in names:
        work.once(name, lambda name=name: {"x": np.array(name)})  # type: ignore[misc]
    assert len({path.name.lower() for path in pieces(work)}) == len(names)
    for name in names:
        assert work.once(name, never)["x"] == name


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_piece_is_made_again(tmp_path: Path, keep: float) -> None:
    work = WorkFolder.open(tmp_path, KEY)
    work.once("a", lambda: ARRAYS)
    (path,) = pieces(work)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert same(work.once("a", lambda: ARRAYS), KEEP_NOTHING.once("a", lambda: ARRAYS))
    assert same(work.once("a", never), KEEP_NOTHING.once("a", lambda: ARRAYS))


def test_no_flipped_bit_of_a_piece_is_believed(tmp_path: Path) -> None:
    work = WorkFolder.open(tmp_path, KEY)
    work.once("a", lambda: {"x": np.arange(3), "y": np.array(1)})
    (path,) = pieces(work)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert shards._read(path) is None, place
    path.write_bytes(whole)
    assert shards._read(path) is not None


def test_a_pickle_in_a_piece_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path.touch, (str(tmp_path / "exploded"),)  # type: ignore[return-value]

    work = WorkFolder.open(tmp_path, KEY)
    work.once("a", lambda: {"x": np.array(1)})
    (path,) = pieces(work)
    file = io.BytesIO()
    np.savez(file, x=np.array([Bomb()], dtype=object))
    for content in (file.getvalue(), pickle.dumps(Bomb())):
        path.write_bytes(content + hashlib.sha256(content).digest())  # a seal that holds
        assert same(work.once("a", lambda: {"x": np.array(1)}), {"x": np.array(1)})
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", ['{"model": "other"}', "{", "", "NaN", "[" * 100_000, "\udcff"])
def test_a_folder_of_another_computation_is_refused_in_one_line(
    tmp_path: Path, content: str
) -> None:
    work = WorkFolder.open(tmp_path, KEY)
    work.once("a", lambda: {"x": np.array(1)})
    (work.folder / "key.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ForwardInfError, match="--fresh") as error:
        WorkFolder.open(tmp_path, KEY)
    assert "\n" not in str(error.value)
    assert len(pieces(work)) == 1, "nothing is lost by being careful"
    assert WorkFolder.open(tmp_path, KEY, fresh=True).done == 0
    assert WorkFolder.open(tmp_path, KEY).done == 0


def test_fresh_and_remove_leave_other_computations_alone(tmp_path: Path) -> None:
    works = [WorkFolder.open(tmp_path, {"number": i}) for i in range(3)]
    for work in works:
        work.once("a", lambda: {"x": np.array(1)})
    assert not WorkFolder.open(tmp_path, {"number": 0}, fresh=True).finished("a")
    works[1].remove()
    works[1].remove()
    assert not works[1].folder.exists()
    assert same(works[2].once("a", never), {"x": np.array(1)})
    assert temporary(tmp_path) == []


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("failure", FAILURES, ids=["full", "interrupted"])
def test_a_write_that_fails_leaves_no_half_file_and_the_finished_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    work = WorkFolder.open(tmp_path, KEY)
    work.once("a", lambda: ARRAYS)

    def fails(*_: object) -> None:
        assert len(temporary(tmp_path)) == 1
        raise failure

    expected = ForwardInfError if isinstance(failure, OSError) else KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(step, fails)
        with pytest.raises(expected) as error:
            work.once("b", lambda: ARRAYS)
    if isinstance(failure, OSError):
        assert "No space left on device; make room or" in str(error.value)
        assert "\n" not in str(error.value)
    assert not work.finished("b")
    assert temporary(tmp_path) == []
    assert same(work.once("a", never), KEEP_NOTHING.once("a", lambda: ARRAYS))
    assert same(work.once("b", lambda: ARRAYS), KEEP_NOTHING.once("a", lambda: ARRAYS))


def test_a_file_that_the_system_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    work = WorkFolder.open(tmp_path, KEY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ForwardInfError, match="File too large; make room"):
            work.once("a", lambda: {"x": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not work.finished("a")
    assert temporary(tmp_path) == []


def test_a_place_that_is_no_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no")):
        with pytest.raises(ForwardInfError, match="--work-dir") as error:
            WorkFolder.open(root, KEY)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_process_killed_while_writing_repeats_that_piece_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def dies() -> None:
        work = WorkFolder.open(tmp_path, KEY)
        work.once("a", lambda: {"x": np.array(1)})
        monkeypatch.setattr(step, die)
        work.once("b", lambda: {"x": np.array(2)})

    assert ended(started(dies)) == -signal.SIGKILL
    assert len(temporary(tmp_path)) == 1

    work = WorkFolder.open(tmp_path, KEY)
    assert temporary(tmp_path) == [], "its owner is gone"
    assert work.done == 1
    assert same(work.once("a", never), {"x": np.array(1)})
    assert not work.finished("b")
    assert same(work.once("b", lambda: {"x": np.array(2)}), {"x": np.array(2)})


def test_a_process_killed_while_removing_leaves_no_part_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies() -> None:
        work = WorkFolder.open(tmp_path, KEY)
        work.once("a", lambda: {"x": np.array(1)})
        monkeypatch.setattr("shutil.rmtree", die)
        work.remove()

    assert ended(started(dies)) == -signal.SIGKILL
    assert len(temporary(tmp_path)) == 1
    assert WorkFolder.open(tmp_path, KEY).done == 0
    assert temporary(tmp_path) == []


def test_temporary_files_stay_while_they_may_have_an_owner(tmp_path: Path) -> None:
    folder = WorkFolder.open(tmp_path, KEY).folder
    here = shards._name("tmp").split(f".{os.getpid()}.")[0]
    ours = folder / f"{here}.{os.getpid()}.00.tmp"
    another_machines = folder / ".elsewhere.999999999.00.tmp"
    gone = folder / f"{here}.{10**30}.00.tmp"
    old = folder / ".elsewhere.1.00.tmp"
    odd = folder / f"{here}.x.00.tmp"
    for path in (ours, another_machines, gone, old, odd):
        path.touch()
    os.utime(old, (0, time.time() - 90_000))
    WorkFolder.open(tmp_path, KEY)
    assert {*temporary(tmp_path)} == {ours, another_machines, odd}


def test_processes_racing_in_one_folder_all_get_the_same(tmp_path: Path) -> None:
    def race(removes: bool) -> None:
        for turn in range(20):
            work = WorkFolder.open(tmp_path, KEY)
            for i in range(10):
                x = np.full(5000, turn * i)
                assert same(work.once(f"{turn}/{i}", lambda x=x: {"x": x}), {"x": x})  # type: ignore[misc]
            if removes:
                work.remove()

    racers = [started(lambda removes=removes: race(removes)) for removes in (True, True, False)]  # type: ignore[misc]
    assert [ended(racer) for racer in racers] == [0, 0, 0]
    WorkFolder.open(tmp_path, KEY)
    assert temporary(tmp_path) == []


def test_work_goes_on_when_another_process_has_finished_and_removed_it(tmp_path: Path) -> None:
    work, other = WorkFolder.open(tmp_path, KEY), WorkFolder.open(tmp_path, KEY)
    work.once("a", lambda: ARRAYS)
    other.remove()
    assert same(work.once("b", lambda: ARRAYS), KEEP_NOTHING.once("b", lambda: ARRAYS))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_removes_while_it_is_opened_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WorkFolder.open(tmp_path, KEY).once("a", lambda: ARRAYS)

    def too_late(self: Path, pattern: str) -> Iterator[Path]:
        shutil.rmtree(self, ignore_errors=True)
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "glob", too_late)
    assert WorkFolder.open(tmp_path, KEY).done == 0


def test_arrays_differ_in_digest_as_soon_as_a_bit_a_type_or_a_shape_does() -> None:
    x = np.arange(6, dtype=np.float32)
    different: list[tuple[np.ndarray | torch.Tensor, ...]] = [
        (x,),
        (x.reshape(2, 3),),
        (x.reshape(3, 2),),
        (x.view(np.int32),),
        (x[:3], x[3:]),
        (x[:3],),
        (np.float32(0) * x - x * 0,),
        (-0.0 * x,),
        (x[:0],),
        (x[:0].reshape(0, 2),),
        (),
        (np.array(3),),
        (np.array([3]),),
        (np.array(["a", "b"]),),
        (np.array(["ab"]),),
        (torch.ones(2, dtype=torch.bfloat16),),
        (torch.ones(2, dtype=torch.float16),),
    ]
    digests = [digest_arrays(*arrays) for arrays in different]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    with pytest.raises(TypeError, match="Python objects"):
        digest_arrays(np.array([None]))


def test_a_digest_does_not_depend_on_memory_layout_or_library() -> None:
    x = np.arange(12, dtype=np.float64).reshape(3, 4)
    wanted = digest_arrays(x)
    for same_numbers in (
        np.asfortranarray(x),
        np.repeat(x, 2, axis=1)[:, ::2],
        x.astype(">f8"),
        torch.as_tensor(x),
        torch.as_tensor(x.T.copy()).T,
        torch.as_tensor(x).requires_grad_(),
    ):
        assert digest_arrays(same_numbers) == wanted
    assert digest_arrays(np.array(True)) == digest_arrays(torch.tensor(True))


def test_a_module_differs_in_digest_as_soon_as_anything_that_it_computes_with_does() -> None:
    def module(seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))

    wanted = digest_module(module())
    assert digest_module(module()) == wanted
    other_order = nn.Sequential(*reversed(list(module())))
    frozen = module()
    frozen.get_parameter("0.bias").requires_grad_(False)
    changed = [module() for _ in range(3)]
    with torch.no_grad():
        changed[0].get_parameter("0.weight")[0, 0] += 1e-7
        changed[1].get_buffer("1.running_mean")[0] = 1e-30
        changed[2].get_buffer("1.num_batches_tracked").add_(1)
    variants = [module(1), other_order, frozen, *changed]
    assert len({wanted, *map(digest_module, variants)}) == 1 + len(variants)
