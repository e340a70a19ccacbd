"""SheepRL on our tasks: what it is told, and what is written of what it does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.runs import run_script
from vis_rpg.analysis.curves import label
from vis_rpg.benchmarks import dreamer
from vis_rpg.compose import compose
from vis_rpg.errors import UserError
from vis_rpg.training.load import load, load_config

WORDS = ("task=maze", "steps=130", "agent.envs=2", "logger.log_every=40", "device=cpu")
STAND_IN = """
import sys
import numpy as np
from vis_rpg.benchmarks.dreamer import recorded_env
told = dict(word.lstrip("+").split("=", 1) for word in sys.argv[1:])
assert told["env.wrapper._target_"] == "vis_rpg.benchmarks.dreamer.recorded_env"
if told["seed"] == "9":
    sys.exit("no such luck")
rows = range(int(told["env.num_envs"]))
envs = [recorded_env(told["env.wrapper.folder"], seed=row, rank=row) for row in rows]
for env in envs:
    obs, _ = env.reset()
    assert obs.shape == env.observation_space.shape
for _ in range(int(told["algo.total_steps"]) // len(envs)):
    for env in envs:
        *_, truncated, _ = env.step(np.array([1.0, 0.0]))
        if truncated:
            env.reset()
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that steps the environments as SheepRL would."""
    monkeypatch.setattr(dreamer, "START", STAND_IN)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_its_steps_become_the_files_of_a_run(
    obs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert run_script(monkeypatch, "dreamer", *WORDS, f"obs={obs}", f"out={out}") == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [40, 80, 120, 130]
    assert [line["episodes"] for line in lines] == [0, 0, 2, 2], "50 steps of two environments"
    # Straight to the right from the centre, through two gaps to the wall: cells 1 wide, one row.
    assert lines[-1]["coverage"] == pytest.approx(0.05)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["task"], summary["obs"]) == (130, "maze", obs)
    assert summary["agent"] == "p2e_dv2_exploration"
    assert label(load_config(out)) == "p2e_dv2_exploration"
    with pytest.raises(UserError, match="a run of SheepRL: only its curves"):
        load(out)


@pytest.mark.usefixtures("stand_in")
def test_a_failure_and_a_folder_that_is_taken_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*WORDS, f"out={tmp_path / 'run'}")
    assert run_script(monkeypatch, "dreamer", *words, "seed=9") == 2
    assert "error: SheepRL stopped: no such luck (all of it: " in capsys.readouterr().err
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert run_script(monkeypatch, "dreamer", *words) == 2
    assert "holds a run already" in capsys.readouterr().err
    for word in ("seeds=3", "resume=true"):
        assert run_script(monkeypatch, "dreamer", *WORDS, word) == 2
        assert "vis-rpg dreamer trains one seed, from the start" in capsys.readouterr().err
    assert run_script(monkeypatch, "dreamer", *WORDS, "device=cuda:99") == 2
    assert "device=cuda:99" in capsys.readouterr().err


def test_without_sheeprl_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_script(monkeypatch, "dreamer", *WORDS) == 2
    assert "vis-rpg dreamer needs SheepRL: pip install" in capsys.readouterr().err


def test_pixels_are_told_as_pictures_and_a_users_words_come_last(tmp_path: Path) -> None:
    words = ("obs=pixels", "dreamer.words=['algo.dense_units=9']", "dreamer.experiment=dreamer_v3")
    config = compose([*WORDS, *words], config_name="dreamer")
    told = dreamer.words(config, tmp_path, "cuda")
    assert "fabric.accelerator=cuda" in told
    assert {"algo.cnn_keys.encoder=[rgb]", "algo.mlp_keys.encoder=[]"} <= set(told)
    assert (told[0], told[-1]) == ("exp=dreamer_v3", "algo.dense_units=9")


@pytest.mark.slow
def test_sheeprl_itself_takes_these_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sheeprl", reason="needs the extra `baselines`")
    small = {
        "algo.learning_starts": 60,
        "algo.dense_units": 8,
        "algo.per_rank_batch_size": 2,
        "algo.per_rank_sequence_length": 5,
        "algo.per_rank_pretrain_steps": 1,
        "algo.replay_ratio": 0.02,
        "algo.world_model.recurrent_model.recurrent_state_size": 8,
    }
    told = ",".join(f"'{key}={value}'" for key, value in small.items())
    out = tmp_path / "run"
    words = (*WORDS, f"out={out}", f"dreamer.words=[{told}]")
    assert run_script(monkeypatch, "dreamer", *words) == 0
    assert json.loads((out / "summary.json").read_text())["steps"] == 130
