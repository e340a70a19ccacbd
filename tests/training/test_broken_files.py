"""Damaged files of a run: evaluating and resuming it both end in one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from tests.runs import trained
from tests.small import config
from vis_rpg.analysis.curves import write_csv
from vis_rpg.analysis.explored_states import read_metrics, states_figure
from vis_rpg.errors import UserError
from vis_rpg.training import checkpoint
from vis_rpg.training.load import load as load_run
from vis_rpg.training.trainer import Trainer

WORDS = ("task=maze", "steps=150", "logger.checkpoint_every=50")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained(*WORDS), tmp_path / "run"))


def document(run: Path) -> Path:
    return checkpoint.latest(run) / "state.json"


def tensors(run: Path) -> Path:
    return checkpoint.latest(run) / "state.safetensors"


def chunk(run: Path) -> Path:
    return max((run / "replay").iterdir())


def settings(run: Path) -> Path:
    return run / "config.yaml"


def edit_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content["state"])
        path.write_text(json.dumps(content))

    return harm


def edit_tensor(name: str, value: float) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        content = load(path.read_bytes())
        content[name] = torch.full_like(content[name], value)
        save_file(content, path)

    return harm


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return harm


def other(path: Path) -> None:
    """Put the file of the checkpoint before in place of this one."""
    shutil.copy(checkpoint.complete(path.parents[1])[0] / path.name, path)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


RESUME_ONLY = ""
"""What evaluating says of a file that it does not read."""


@pytest.mark.parametrize(
    ("file", "harm", "evaluating", "resuming"),
    [
        (
            document,
            edit_json(lambda state: state.pop("step")),
            "state.json is not as it was saved",
            None,
        ),
        (
            document,
            edit_json(lambda state: state["learner"].pop("optimizers")),
            "state.json is not as it was saved",
            None,
        ),
        (
            document,
            edit_json(lambda state: state.update(step="many")),
            "state.json is not as it was saved",
            None,
        ),
        (
            document,
            edit_json(lambda state: state["replay"].update(write_ptr=[None])),
            "state.json is not as it was saved",
            None,
        ),
        (document, lambda path: path.write_text("[" * 100_000), "state.json is cut short", None),
        (
            document,
            lambda path: path.write_bytes("{}".encode("utf-16")),
            "state.json is cut short",
            None,
        ),
        (document, other, "state.json|state.safetensors", None),
        (tensors, other, "state.safetensors", None),
        (tensors, zeroed, "state.safetensors cannot be read", None),
        (
            tensors,
            edit_tensor("/agent/log_alpha", float("nan")),
            "NaN or infinity in /agent/log_alpha",
            None,
        ),
        (tensors, edit_tensor("/actor/z", 0.5), "state.safetensors is not as it was saved", None),
        (
            chunk,
            lambda path: path.unlink(),
            RESUME_ONLY,
            "replay-.*: needed by a checkpoint of this run, but it cannot be read",
        ),
        (chunk, lambda path: os.truncate(path, 900), RESUME_ONLY, "replay-.*not as it was written"),
        (chunk, edit_tensor("next", 10**6), RESUME_ONLY, "replay-.*not as it was written"),
        (
            settings,
            replaced("  state_dim: 16\n", ""),
            "config.yaml is damaged, or of another version: agent.state_dim is missing",
            None,
        ),
        (
            settings,
            replaced("state_dim: 16", "state_dim: wide"),
            "config.yaml is damaged, or of another version: agent.state_dim=wide: expected",
            None,
        ),
        (
            settings,
            replaced("state_dim: 16", "state_dim: ${absent}"),
            "config.yaml is damaged, or of another version: .*absent",
            None,
        ),
        (
            settings,
            replaced("state_dim: 16", "state_dim: -1"),
            "config.yaml is damaged, or of another version: agent.state_dim=-1: must be above 0",
            None,
        ),
        (
            settings,
            replaced("kind: state", "kind: pixels"),
            "config.yaml: perception=state does not see",
            "same settings",
        ),
        (
            settings,
            replaced("  name: maze\n", ""),
            "config.yaml is damaged, or of another version: task.name is missing",
            None,
        ),
        (
            settings,
            replaced("  name: state\n", ""),
            "config.yaml is damaged, or of another version: perception.name=None: choose one",
            None,
        ),
        (
            settings,
            replaced("  name: state\n", "  name: lidar\n"),
            "config.yaml is damaged, or of another version: perception.name=lidar",
            None,
        ),
        (settings, replaced("seed: 0\n", ""), "config.yaml is damaged.*: seed is missing", None),
        (
            settings,
            lambda path: path.write_bytes(b"seed: \xe9\n"),
            "config.yaml cannot be read: UnicodeDecodeError",
            None,
        ),
        (
            lambda run: run / "checkpoints",
            lambda path: (shutil.rmtree(path), path.write_text("")),
            "no checkpoint",
            "checkpoints: cannot be",
        ),
        (
            lambda run: run / "visits",
            lambda path: (shutil.rmtree(path), path.write_text("")),
            RESUME_ONLY,
            "visits: cannot be a folder",
        ),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(
    run: Path,
    file: Callable[[Path], Path],
    harm: Callable[[Path], object],
    evaluating: str,
    resuming: str | None,
) -> None:
    harm(file(run))
    for says, begin in (
        (evaluating, lambda: load_run(run)),
        (resuming or evaluating, lambda: resume(run)),
    ):
        if says != RESUME_ONLY:
            with pytest.raises(UserError, match=says) as error:
                begin()
            assert "\n" not in str(error.value) and str(run) in str(error.value)


def resume(run: Path) -> Trainer:
    return Trainer(config(*WORDS, f"out={run}", "resume=true"))


def test_a_run_of_an_earlier_version_is_not_called_damaged(run: Path) -> None:
    replaced("perception:\n", "perception:\n  encoder: mlp\n")(settings(run))
    replaced(checkpoint.FORMAT, "vis-rpg checkpoint 7")(document(run))
    for begin in (lambda: load_run(run), lambda: resume(run)):
        with pytest.raises(UserError, match="not a checkpoint of this version"):
            begin()


def test_a_run_from_before_a_setting_gets_the_value_of_then(run: Path) -> None:
    replaced("  gamma_rewarded: null\n", "")(settings(run))
    load_run(run)
    assert resume(run).config.agent.gamma_rewarded is None


def test_weights_that_are_no_numbers_are_named_and_not_evaluated(run: Path) -> None:
    state = checkpoint.load(checkpoint.latest(run))
    state["agent"]["log_alpha"].fill_(float("nan"))
    checkpoint.save(run / "checkpoints", state["step"], state)
    for begin in (lambda: load_run(run), lambda: resume(run)):
        with pytest.raises(
            UserError, match=r"weights that are not finite \(NaN or infinity in log_alpha"
        ) as error:
            begin()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("lacking", ["learner", "envs", "actor", "replay"])
def test_a_checkpoint_that_lacks_a_part_is_not_resumed(run: Path, lacking: str) -> None:
    state = checkpoint.load(checkpoint.latest(run))
    del state[lacking]
    checkpoint.save(run / "checkpoints", state["step"], state)
    with pytest.raises(UserError, match=f"the checkpoint does not fit this run .*{lacking}"):
        resume(run)


def test_files_that_a_user_put_beside_checkpoints_stay(run: Path) -> None:
    (run / "checkpoints" / "step-9999999999").write_text("a note")
    shutil.copytree(checkpoint.latest(run), run / "checkpoints" / "step-best")
    Trainer(
        config("task=maze", "steps=200", "logger.checkpoint_every=50", f"out={run}", "resume=true")
    ).run()
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"step-9999999999", "step-best", "step-0000000200"} <= names


def test_a_log_that_is_no_log_is_begun_anew(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b'7\n[1]\n\xff\xfe\n{"step": 100}\n')
    resume(run)
    assert (run / "metrics.jsonl").read_text() == '{"step": 100}\n'


@pytest.mark.parametrize("content", [b"7\n", b"[1]\n", b"\xff\xfe\n", b'{"coverage": 1}\n'])
def test_a_log_that_cannot_be_drawn_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(
        UserError, match=r"metrics.jsonl: a line is not JSON, or no metrics; the file is broken"
    ):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("harm", "says"),
    [(replaced("seed: 0\n", ""), "seed"), (replaced("seed: 0\n", "seed: many\n"), "many")],
)
def test_curves_and_states_of_a_run_with_a_damaged_config_are_one_line(
    run: Path, harm: Callable[[Path], None], says: str
) -> None:
    harm(settings(run))
    for draw in (
        lambda: write_csv(run / "curves.csv", [run], "coverage"),
        lambda: states_figure(run),
    ):
        with pytest.raises(UserError, match=f"config.yaml is damaged.*{says}") as error:
            draw()
        assert "\n" not in str(error.value)
