"""Checkpoints: what is saved comes back, a failure never costs the one before, a broken one is said
in a line."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vis_rpg.errors import UserError
from vis_rpg.training import checkpoint
from vis_rpg.training.checkpoint import complete, latest, load, save


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return (
            isinstance(second, torch.Tensor)
            and first.dtype == second.dtype
            and torch.equal(first, second)
        )
    if isinstance(first, np.ndarray):
        return (
            isinstance(second, np.ndarray)
            and first.dtype == second.dtype
            and np.array_equal(first, second)
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            equal(first[key], second[key]) for key in first
        )
    if isinstance(first, list):
        return len(first) == len(second) and all(
            equal(a, b) for a, b in zip(first, second, strict=True)
        )
    return type(first) is type(second) and (first == second or first != first and second != second)


def test_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    state = {
        "tensors": [
            {
                "half": torch.randn(3).half(),
                "flag": torch.tensor([True]),
                "none": torch.zeros(2, 0),
            },
            {},
            [],
        ],
        "scalars": {
            "tensor": torch.tensor(1.5),
            "array": np.array(2.5),
            "float": 0.1,
            "nan": float("nan"),
            "text": "λ",
        },
        "arrays": [
            np.arange(4, dtype=np.uint32),
            np.zeros((2, 3), bool),
            rng.normal(size=(2, 2))[:, ::-1],
        ],
        "bits": rng.bit_generator.state,
        "python": random.getstate()[1][:5].__class__,
    }
    state["python"] = None
    path = save(tmp_path, 7, state)
    assert equal(state, load(path))
    assert path.name == "step-0000000007"


def test_numpy_scalars_and_tuples_become_plain_values(tmp_path: Path) -> None:
    loaded = load(
        save(tmp_path, 1, {"count": np.int64(3), "rate": np.float32(0.5), "pair": (1, 2), 5: True})
    )
    assert loaded == {"count": 3, "rate": 0.5, "pair": [1, 2], "5": True}


def test_the_random_states_of_every_library_come_back(tmp_path: Path) -> None:
    state = {
        "numpy": list(np.random.get_state(legacy=True)),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    }
    path = save(tmp_path, 1, state)
    drawn = np.random.rand(3), random.random(), torch.rand(3)
    saved = load(path)
    np.random.set_state(tuple(saved["numpy"]))
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(saved["torch"])
    again = np.random.rand(3), random.random(), torch.rand(3)
    assert equal([*drawn], [*again])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        save(tmp_path, step, {"step": step})
    assert [path.name for path in complete(tmp_path)] == ["step-0000000020", "step-0000000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-0000000020",
        "step-0000000100",
    ]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"a": torch.ones(2), "b": [np.ones(3)]})
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "state.safetensors"]
    json.loads((path / "state.json").read_text())


@pytest.mark.parametrize("where", ["tensors", "json", "rename"])
def test_a_full_disk_costs_nothing_but_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    state = {"a": torch.arange(5)}
    save(tmp_path, 1, state)
    save(tmp_path, 2, state)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {
        "tensors": (checkpoint, "write_tensors"),
        "json": (checkpoint.json, "dump"),
        "rename": (checkpoint.os, "replace"),
    }[where]
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3, {"a": torch.zeros(5)})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert [path.name[-1] for path in complete(tmp_path)] == ["1", "2"]
    assert equal(load(complete(tmp_path)[-1]), state)


def test_a_kill_at_any_moment_of_saving_leaves_a_good_newest_checkpoint(tmp_path: Path) -> None:
    """Each child process dies, without cleaning up, at its n-th call of what touches the disk."""
    reached_the_end = False
    for call in range(40):
        folder = tmp_path / str(call)
        for step in (1, 2):
            save(folder, step, {"step": step, "a": torch.full((4,), float(step))})
        child = os.fork()
        if child == 0:
            left = call

            def dies(function):
                def counted(*args, **kwargs):
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os._exit(9)
                    return function(*args, **kwargs)

                return counted

            for name in ("replace", "fsync", "unlink", "rmdir", "mkdir"):
                setattr(os, name, dies(getattr(os, name)))
            checkpoint.json.dump = dies(json.dump)
            save(folder, 3, {"step": 3, "a": torch.full((4,), 3.0)})
            os._exit(0)
        reached_the_end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        newest = load(complete(folder)[-1])
        assert newest["step"] in (2, 3)
        assert torch.equal(newest["a"], torch.full((4,), float(newest["step"])))
        save(folder, 4, {"step": 4, "a": torch.zeros(4)})
        assert len(list(folder.iterdir())) == 2, "what the kill left behind is gone"
        if reached_the_end:
            break
    assert reached_the_end
    assert call > 4


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: shutil.rmtree(path), r"not a checkpoint \(state.json: No such file"),
        (
            lambda path: (path / "state.json").unlink(),
            r"not a checkpoint \(state.json: No such file",
        ),
        (
            lambda path: os.truncate(path / "state.json", 40),
            "state.json is cut short: delete this folder to use the one before",
        ),
        (lambda path: (path / "state.json").write_bytes(b"\xff\xfe\0"), "state.json is cut short"),
        (
            lambda path: (path / "state.json").write_text('{"weights": 1}'),
            "not a checkpoint of this version",
        ),
        (
            lambda path: (path / "state.json").write_text("[1, 2]"),
            "not a checkpoint of this version",
        ),
        (lambda path: (path / "state.safetensors").unlink(), "state.safetensors cannot be read"),
        (
            lambda path: os.truncate(path / "state.safetensors", 100),
            "state.safetensors is cut short",
        ),
        (lambda path: os.truncate(path / "state.safetensors", 0), "state.safetensors is cut short"),
        (
            lambda path: (path / "state.safetensors").write_bytes(
                b"?" * (path / "state.safetensors").stat().st_size
            ),
            "cannot be read",
        ),
    ],
)
def test_a_broken_checkpoint_is_one_line_that_names_it(tmp_path: Path, harm, says: str) -> None:
    path = save(tmp_path, 1, {"a": torch.arange(100)})
    harm(path)
    with pytest.raises(UserError, match=says) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_loaded_does_not_hang_on_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"a": torch.arange(100_000), "b": np.ones(1000)})
    state = load(path)
    os.truncate(path / "state.safetensors", 0)
    assert equal(state, {"a": torch.arange(100_000), "b": np.ones(1000)})


def test_a_run_without_checkpoints_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint there"):
        latest(tmp_path)
    save(tmp_path / "checkpoints", 3, {})
    assert latest(tmp_path).name == "step-0000000003"


def test_a_checkpoint_that_is_being_written_is_not_taken_for_one(tmp_path: Path) -> None:
    save(tmp_path, 1, {})
    (tmp_path / ".writing-2").mkdir()
    (tmp_path / "step-0000000002").mkdir()
    assert [path.name for path in complete(tmp_path)] == ["step-0000000001"]
