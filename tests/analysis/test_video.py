"""Videos of rollouts: one z a row, one start a column, frames that players can read, slot masks
beside the frames in pixel mode."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import gymnasium
import numpy as np
import pytest
import torch

import vis_rpg
from perception.slots.model import SlotConfig, SlotModel
from tests.runs import run_script, trained
from vis_rpg.analysis import video
from vis_rpg.envs.rendering.frames import VIDEO
from vis_rpg.errors import UserError

STATE_RUN = ("task=maze", "steps=150")


def decoded(path: Path) -> tuple[list[np.ndarray], av.VideoStream]:
    with av.open(str(path)) as container:
        return [
            frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)
        ], container.streams.video[0]


@pytest.fixture(scope="module")
def slots_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("slots") / "maze.safetensors"
    SlotModel(SlotConfig(slots=2, width=16, channels=8)).save(path, {})
    return trained("task=maze", "obs=pixels", f"perception.checkpoint={path}", "steps=100")


def test_a_row_keeps_one_z_and_rows_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, env = vis_rpg.load(trained(*STATE_RUN))
    acted: list[tuple[int, bool, torch.Tensor]] = []
    play = video.play

    def watched(actor, env, seed, z, explore):
        yield from play(actor, env, seed, z, explore)
        acted.append((seed, explore, actor.z[0].clone()))

    monkeypatch.setattr(video, "play", watched)
    tiles = video.rollout_rows(actor, env, rows=2, columns=3)
    assert [len(line) for line in tiles] == [3, 3]
    rows = [acted[:3], acted[3:]]
    for row in rows:
        assert all(torch.equal(a[2], b[2]) for a, b in pairwise(row))
        assert [explore for _, explore, _ in row] == [False, True, True]
    assert not torch.equal(rows[0][0][2], rows[1][0][2])
    assert [seed for seed, *_ in rows[0]] == [seed for seed, *_ in rows[1]]


def test_the_same_seed_gives_the_same_pictures() -> None:
    first, second = (
        video.rollout_rows(*vis_rpg.load(trained(*STATE_RUN)), seed=5, rows=1, columns=2)
        for _ in range(2)
    )
    assert all(
        np.array_equal(a, b)
        for one, other in zip(first[0], second[0], strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_a_written_video_has_every_frame_in_the_format_that_players_read(tmp_path: Path) -> None:
    frames = [np.full((62, 98, 3), 25 * k, np.uint8) for k in range(8)]
    video.write_mp4(tmp_path / "a.mp4", iter(frames), 12)
    seen, stream = decoded(tmp_path / "a.mp4")
    assert (
        stream.codec_context.name == "h264"
        and stream.codec_context.pix_fmt == "yuv420p"
        and stream.average_rate == 12
    )
    assert [frame.shape for frame in seen] == [(62, 98, 3)] * 8
    assert all(abs(frame.mean() - 25 * k) < 4 for k, frame in enumerate(seen))


def test_the_script_films_the_run(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    run = trained(*STATE_RUN)
    assert run_script(monkeypatch, "evaluate", f"run={run}", "episodes=1") == 0
    assert "recording" in capfd.readouterr().err
    frames, _ = decoded(run / "rollouts.mp4")
    assert len(frames) == 51  # the first observation and 50 steps
    height, width, _ = frames[0].shape
    assert height >= video.ROWS * (VIDEO + video.CAPTION) and width >= video.COLUMNS * VIDEO
    (run / "rollouts.mp4").unlink()


def test_masks_lie_beside_the_frames_where_there_are_slots(slots_run: Path) -> None:
    actor, env = vis_rpg.load(slots_run)
    tile = video.rollout_rows(actor, env, rows=1, columns=1)[0][0][-1]
    assert tile.shape == (video.CAPTION + VIDEO, 2 * VIDEO, 3)


def test_masks_follow_what_the_agent_itself_sees(slots_run: Path) -> None:
    actor, env = vis_rpg.load(slots_run)
    view = video.SlotOverlay(actor.agent.model.perception.model)
    actor.reset()
    obs, _ = env.reset(seed=0)
    for _ in range(3):
        view.draw(obs)
        obs, *_ = env.step(actor.act(obs))
        torch.testing.assert_close(view.slots, actor.state.hidden["slots"])


def test_an_agent_without_z_is_filmed_alike() -> None:
    actor, env = vis_rpg.load(trained("task=maze", "agent=mbsac", "steps=100"))
    tiles = video.rollout_rows(actor, env, rows=2, columns=1)
    assert all(
        np.array_equal(a[video.CAPTION :], b[video.CAPTION :])
        for a, b in zip(tiles[0][0], tiles[1][0], strict=True)
    )


def test_a_shorter_rollout_rests_on_its_end() -> None:
    short, long = (
        [np.full((4, 4, 3), value, np.uint8) for value in values]
        for values in ((10, 20), (1, 2, 3))
    )
    frames = list(video.mosaic([[short, long]]))
    assert len(frames) == 3
    values = [sorted(set(np.unique(frame)) - {255}) for frame in frames]
    assert values == [[1, 10], [2, 20], [3, 20]]


@pytest.mark.parametrize("shape", [(64, 64), (480, 640), (300, 100)])
def test_any_picture_fits_with_its_proportions(shape: tuple[int, int]) -> None:
    fitted = video.letterbox(np.full((*shape, 3), 200, np.uint8), 1)
    assert fitted.shape == (VIDEO, VIDEO, 3)
    bright = (fitted == 200).all(-1)
    assert bright.any(1).sum() / bright.any(0).sum() == pytest.approx(shape[0] / shape[1], rel=0.02)


def test_a_long_episode_is_thinned_and_keeps_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MOST_FRAMES", 20)
    actor, env = vis_rpg.load(trained(*STATE_RUN))
    tiles = video.rollout_rows(actor, env, rows=1, columns=1)[0][0]
    assert len(tiles) == 18  # statistics 0, 3, .. 48, and 50
    np.testing.assert_array_equal(tiles[-1][video.CAPTION :], video.render(env))


def test_an_environment_without_pictures_is_named() -> None:
    class Blind(gymnasium.Wrapper):
        def render(self):
            return None

    actor, env = vis_rpg.load(trained(*STATE_RUN))
    with pytest.raises(UserError, match="maze draws NoneType where a picture"):
        video.rollout_rows(actor, Blind(env), rows=1, columns=1)


def test_videos_play_no_faster_than_30_frames_a_second() -> None:
    _, env = vis_rpg.load(trained(*STATE_RUN))
    assert video.frames_per_second(env) == 12
    env.unwrapped.metadata = {"render_fps": 500}
    assert video.frames_per_second(env) == 30
