"""Recorded episodes: they play again as they were, and are spread over the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.runs import final, trained
from tests.small import config
from vis_rpg.analysis.explored_states import read_visits
from vis_rpg.envs.make import make_env, object_positions, observed_task
from vis_rpg.training import checkpoint, episodes
from vis_rpg.training.episodes import EpisodeRecorder, RecordedEpisode, Replay, recorded_episodes
from vis_rpg.training.load import load_config
from vis_rpg.training.trainer import Trainer

DENSE = ("task=push_around", "steps=200")
PIXELS = ("task=block_push", "task.blocks=1", "obs=pixels", "perception=cnn", "steps=310")
RANDOM = "agent.seed_steps=5000"  # no updates, which nothing here needs
WORKERS = ("task=adroit_door", "steps=1020", "exploration=none")


# What is recorded ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        DENSE,
        (*DENSE, "obs.noise=0.1", "agent.latent.every=3"),
        PIXELS,
        (*PIXELS, "obs.corrupt=[noise:5,shake:1]"),
        pytest.param(WORKERS, marks=pytest.mark.slow),
    ],
    ids=["dense", "noise", "pixels", "corrupt", "workers"],
)
def test_a_recorded_episode_replays_to_the_same_rewards_and_places(words: tuple[str, ...]) -> None:
    run = trained(*words, RANDOM)
    settings, visits = load_config(run), read_visits(run)
    env = make_env(observed_task(settings), settings.obs.kind)
    found = recorded_episodes(final(run))
    assert len(found) >= 5
    for episode in found:
        replay = Replay(env, episode)
        obs, info = replay.reset(seed=3)
        assert np.array_equal(obs, episode.obs)
        rewards = []
        for action in episode.action:
            obs, reward, terminated, truncated, info = replay.step(action)
            rewards.append(reward)
        assert np.array_equal(np.float32(rewards), episode.reward)
        assert (terminated or truncated) and info["success"] == episode.success
        at_end = visits.positions[visits.step == episode.ended]
        places = object_positions(info).astype(np.float32)
        assert (at_end == places).all((1, 2)).any(), "the places are not those of the run"
    assert len({episode.reward.sum() for episode in found}) > 1 or words[0] != DENSE[0]


def test_the_z_and_actions_are_those_in_replay(tmp_path: Path) -> None:
    trainer = Trainer(
        config("task=maze", "agent.latent.every=7", RANDOM, "steps=260", f"out={tmp_path}")
    )
    trainer.run()
    storage = trainer.runs[0].replay.storage
    columns = {name: getattr(storage, name).numpy() for name in ("action", "z")}
    first = trainer.runs[0].episodes.kept[0]
    assert first.began == 0 and len(first.action) * 5 == first.ended
    for name, column in columns.items():
        for row in getattr(first, name):
            assert (column == row).all(-1).any(), name
    assert len(np.unique(first.z, axis=0)) == int(np.ceil(len(first.z) / 7))


@pytest.mark.parametrize(
    "words",
    [("task=maze", "logger.episodes=0"), ("task=gym", "task.id=Pendulum-v1", "steps=1100")],
    ids=["none wanted", "cannot be saved"],
)
def test_nothing_is_recorded_where_none_is_wanted_or_can_be(words: tuple[str, ...]) -> None:
    assert recorded_episodes(final(trained(*words, RANDOM))) == []


def test_a_run_from_before_recordings_goes_on_and_records_from_there(tmp_path: Path) -> None:
    words = ("task=maze", RANDOM, f"out={tmp_path}")
    Trainer(config(*words, "steps=150")).run()
    state = final(tmp_path)
    del state["episodes"]
    checkpoint.save(tmp_path / "checkpoints", state["step"], state)
    Trainer(config(*words, "steps=800", "resume=true")).run()
    found = recorded_episodes(final(tmp_path))
    assert found and min(episode.began for episode in found) >= 150


# Which are kept -----------------------------------------------------------------------------------


def recorder_of(ends: list[int], successes: Sequence[int] = ()) -> EpisodeRecorder:
    recorder = EpisodeRecorder(24, 1)
    for end in ends:
        recorder.begin(0, max(0, end - 10), {}, np.zeros(2))
        recorder.add([0], np.zeros((1, 2)), np.zeros((1, 3)), np.zeros(1))
        recorder.end(0, end, end in successes)
    return recorder


@pytest.mark.parametrize("total", [30, 300, 5000])
def test_the_kept_are_spread_over_the_run_with_its_first_and_newest(total: int) -> None:
    ends = [10 * (k + 1) for k in range(total)]
    kept = [episode.ended for episode in recorder_of(ends).kept]
    assert len(kept) == 24 and kept[0] == 10 and kept[-1] == ends[-1]
    assert np.diff(kept).max() <= 4 * ends[-1] / 24


def test_the_first_successes_stay_and_later_ones_do_not_crowd_out_the_others() -> None:
    ends = [10 * (k + 1) for k in range(1000)]
    kept = recorder_of(ends, [310, 320, 330, 340, *range(5000, 10001)]).kept
    assert {310, 320, 330, 340} <= {episode.ended for episode in kept}
    others = [episode.ended for episode in kept if not 310 <= episode.ended <= 340]
    assert len(others) == 20 and np.diff(others).max() <= 4 * 10000 / 20


def test_episodes_fit_into_the_bytes_that_they_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    one = recorder_of([10]).kept[0].nbytes
    monkeypatch.setattr(episodes, "MOST_BYTES", 5 * one)
    kept = recorder_of([10 * (k + 1) for k in range(100)]).kept
    assert len(kept) == 5 and kept[0].ended == 10 and kept[-1].ended == 1000
    monkeypatch.setattr(episodes, "MOST_BYTES", one - 1)
    assert recorder_of([10, 20]).kept == []


def test_what_a_dropped_episode_did_is_in_no_recording() -> None:
    recorder = recorder_of([10])
    recorder.begin(0, 10, {}, np.zeros(2))
    recorder.add([0], np.ones((1, 2)), np.ones((1, 3)), np.ones(1))
    recorder.forget([0])
    recorder.add([0], np.ones((1, 2)), np.ones((1, 3)), np.ones(1))
    recorder.end(0, 20, True)
    assert [episode.ended for episode in recorder.kept] == [10]
    assert isinstance(recorder.kept[0], RecordedEpisode)
