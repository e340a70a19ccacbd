"""Promises that all of the project's own tasks keep."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import vis_rpg.envs  # noqa: F401  (registers the tasks)
from vis_rpg.envs.make import object_positions, task_of
from vis_rpg.errors import UserError

BANDIT, MAZE, PUSH = "vis_rpg/Bandit-v0", "vis_rpg/Maze-v0", "vis_rpg/BlockPush-v0"
ANT, BACK = "vis_rpg/AntPush-v0", "vis_rpg/CheetahBack-v0"
CHEETAH, HUMANOID = "vis_rpg/HalfCheetah-v0", "vis_rpg/Humanoid-v0"
REACH, BASKETBALL, STICK = (
    "vis_rpg/MetaWorld-v0",
    "vis_rpg/MetaWorldBasketball-v0",
    "vis_rpg/MetaWorldStickPull-v0",
)
DOOR, HAMMER = "vis_rpg/AdroitDoor-v0", "vis_rpg/AdroitHammer-v0"
CABINET = ["vis_rpg/CabinetSparse-v0", "vis_rpg/CabinetDense-v0"]
RUNNERS, HANDS = [ANT, BACK, CHEETAH, HUMANOID], [REACH, BASKETBALL, STICK, DOOR, HAMMER]
STATE = [
    (BANDIT, {}),
    (MAZE, {}),
    (PUSH, {"blocks": 1}),
    (PUSH, {}),
    *((id, {}) for id in RUNNERS + HANDS + CABINET),
]
DRAWN_STATE = [pytest.param(id, {}, marks=pytest.mark.vulkan) for id in CABINET]
DRAWN_CABINET = [pytest.param(id, {"obs": "pixels"}, marks=pytest.mark.vulkan) for id in CABINET]
PIXELS = [
    (MAZE, {"obs": "pixels"}),
    (PUSH, {"obs": "pixels", "blocks": 1}),
    (PUSH, {"obs": "pixels"}),
]
PIXELS += [(id, {"obs": "pixels"}) for id in RUNNERS + HANDS]
PLAIN = [case for case in PIXELS if case[0] not in (BACK, *HANDS)] + DRAWN_CABINET
"""Tasks in which every object is large and of one colour at any time; the limbs of CheetahBack are
blurred."""
PIXELS += DRAWN_CABINET
PLANAR = [(MAZE, {}), (PUSH, {"blocks": 1}), (PUSH, {}), (ANT, {}), (DOOR, {}), (HAMMER, {})]
"""Tasks whose positions scale by one factor."""
SEEN = [*PLANAR, *DRAWN_STATE]


def make(id: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    return gymnasium.make(id, disable_env_checker=True, **kwargs)


def actions_for(env: gymnasium.Env, count: int, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .uniform(-1, 1, (count, *env.action_space.shape))
        .astype(np.float32)
    )


def run(env: gymnasium.Env, actions: np.ndarray) -> list[np.ndarray]:
    trace: list[np.ndarray] = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        trace += [obs, np.array(reward), info["objects"]]
        if terminated or truncated:
            trace.append(env.reset()[0])
    return trace


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    assert len(first) == len(second)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def over_an_end(env: gymnasium.Env) -> int:
    """Steps that go a little beyond the end of an episode, of long ones some of the first."""
    return min(200, task_of(env).episode_length + 10)


@pytest.mark.usefixtures("nothing_is_left_of_a_test")
@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # velocities have no bounds
@pytest.mark.parametrize(
    ("id", "kwargs"), [case for case in STATE[1:] if case[0] not in CABINET] + DRAWN_STATE + PIXELS
)
def test_gymnasium_accepts_it(id: str, kwargs: dict[str, Any]) -> None:
    # It draws as well. The bandit is left out: Gymnasium's checker holds any episode of one
    # truncated step for an error.
    check_env(make(id, kwargs).unwrapped)


@pytest.mark.parametrize(
    ("id", "kwargs"), [*(case for case in STATE if case[0] != HUMANOID), (PUSH, {"obs": "pixels"})]
)  # which falls
def test_the_length_is_truncation_never_termination(id: str, kwargs: dict[str, Any]) -> None:
    env = make(id, kwargs)
    for _ in range(2):
        env.reset(seed=0)
        ends = [env.step(action)[2:4] for action in actions_for(env, task_of(env).episode_length)]
        assert ends == [(False, False)] * (len(ends) - 1) + [(False, True)]


@pytest.mark.parametrize(("id", "kwargs"), STATE + PIXELS)
def test_same_seed_same_trajectory_bit_for_bit(id: str, kwargs: dict[str, Any]) -> None:
    traces = []
    for _ in range(2):
        env = make(id, kwargs)
        first, info = env.reset(seed=3)
        traces.append([first, info["objects"], *run(env, actions_for(env, over_an_end(env)))])
    assert_same(*traces)


@pytest.mark.parametrize(("id", "kwargs"), STATE + PIXELS)
def test_a_saved_state_continues_bit_for_bit_in_another_instance(
    id: str, kwargs: dict[str, Any]
) -> None:
    env, other = make(id, kwargs), make(id, kwargs)
    env.reset(seed=1)
    env.unwrapped.np_random.uniform()
    run(env, actions_for(env, 37))
    saved = env.unwrapped.get_state()
    ahead = actions_for(env, 70, seed=2)
    expected, draw = run(env, ahead), env.unwrapped.np_random.uniform()
    for again in (env, other):
        again.unwrapped.set_state(saved)
        assert_same(expected, run(again, ahead))
        assert again.unwrapped.np_random.uniform() == draw


@pytest.mark.parametrize(("id", "kwargs"), STATE + PIXELS)
def test_observations_stay_in_their_space_under_full_speed(id: str, kwargs: dict[str, Any]) -> None:
    env = make(id, kwargs)
    obs, _ = env.reset(seed=0)
    for action in np.sign(actions_for(env, over_an_end(env))):
        assert env.observation_space.contains(obs)
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()


@pytest.mark.parametrize(("id", "kwargs"), [own for own in PLANAR if own[0] not in (DOOR, HAMMER)])
def test_locate_is_the_true_positions_scaled_into_one(id: str, kwargs: dict[str, Any]) -> None:
    env = make(id, kwargs)
    env.reset(seed=0)
    low, high = np.array(task_of(env).coverage.low), np.array(task_of(env).coverage.high)
    for action in actions_for(env, 40):
        state, _, _, _, info = env.step(action)
        located = task_of(env).object_coordinates(torch.as_tensor(state)[None, None])
        truth = object_positions(info)
        assert located.shape == (1, 1, *truth.shape)
        assert located.abs().max() <= 1
        plane = list(task_of(env).plane)
        assert np.allclose(
            (located[0, 0, :, plane] + 1) / 2 * (high - low) + low, truth[:, plane], atol=1e-5
        )


@pytest.mark.parametrize(("id", "kwargs"), STATE)
def test_object_names_match_the_positions_reported(id: str, kwargs: dict[str, Any]) -> None:
    env = make(id, kwargs)
    _, info = env.reset(seed=0)
    task = task_of(env)
    assert object_positions(info).shape in [
        (len(task.object_names), 2),
        (len(task.object_names), 3),
    ]
    assert task.coverage is None or set(task.coverage.objects) <= set(task.object_names)


@pytest.mark.parametrize(("id", "kwargs"), PIXELS)
def test_a_stack_starts_with_the_first_frame_twice_and_ends_with_the_newest(
    id: str, kwargs: dict[str, Any]
) -> None:
    env = make(id, kwargs)
    before, _ = env.reset(seed=0)
    assert before.shape == (2, 64, 64, 3)
    assert np.array_equal(before[0], before[1])
    for _ in range(3):
        after, *_ = env.step(np.full(env.action_space.shape, 0.5, np.float32))
        assert np.array_equal(after[0], before[1])
        assert not np.array_equal(after[1], after[0])
        before = after


@pytest.mark.parametrize(("id", "kwargs"), PIXELS)
def test_an_observation_handed_out_is_never_changed_later(id: str, kwargs: dict[str, Any]) -> None:
    env = make(id, kwargs)
    env.reset(seed=0)
    action = np.ones(env.action_space.shape, np.float32)
    obs, *_ = env.step(action)
    kept = obs.copy()
    env.step(action)
    env.reset()
    assert np.array_equal(obs, kept)


@pytest.mark.parametrize(("id", "kwargs"), PLAIN)
def test_every_object_is_large_enough_to_be_found_and_of_one_colour(
    id: str, kwargs: dict[str, Any]
) -> None:
    env = make(id, kwargs)
    obs, _ = env.reset(seed=0)
    for action in actions_for(env, 12):
        obs, *_ = env.step(action)
    masks = env.unwrapped.segmentation()
    colours = []
    for index in range(1, 1 + len(task_of(env).object_names)):
        pixels = obs[1][masks == index].astype(int)
        assert len(pixels) >= (
            20 if id in CABINET else 30
        )  # the gripper, seen from where the whole arm is seen
        colours.append(np.median(pixels, axis=0))
        same = np.abs(obs[1].astype(int) - colours[-1]).max(axis=-1) < 30
        assert (
            same[masks == index].mean() > 0.8
        )  # the mask shows the object, its smoothed rim aside ...
        assert (masks[same] == index).mean() > 0.9  # ... and the object lies in the mask
    distances = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert all(distance > 80 for distance in distances)


@pytest.mark.usefixtures("nothing_is_left_of_a_test")
@pytest.mark.parametrize(("id", "kwargs"), [*SEEN, (BACK, {}), (CHEETAH, {}), (HUMANOID, {})])
def test_a_video_picture_is_drawn_from_state_too(id: str, kwargs: dict[str, Any]) -> None:
    env = make(id, {**kwargs, "render_mode": "rgb_array"})
    env.reset(seed=0)
    still = env.render()
    assert still.shape == (256, 256, 3)
    env.step(np.ones(env.action_space.shape, np.float32))
    assert not np.array_equal(env.render(), still)


@pytest.mark.parametrize(("id", "kwargs"), [*SEEN, (BACK, {})])
def test_the_drawing_of_a_task_fits_the_grid_of_its_coverage(
    id: str, kwargs: dict[str, Any]
) -> None:
    from matplotlib.figure import Figure

    task = task_of(make(id, kwargs))
    axes = Figure().subplots()
    task.draw(axes)
    for limits, low, high in zip(
        (axes.get_xlim(), axes.get_ylim()), task.coverage.low, task.coverage.high, strict=True
    ):
        assert limits[0] <= low < high <= limits[1]
    assert axes.lines


@pytest.mark.parametrize("id", [BANDIT, MAZE, PUSH, *RUNNERS, BASKETBALL, DOOR, *CABINET])
def test_an_unknown_observation_kind_names_the_nearest(id: str) -> None:
    with pytest.raises(UserError) as error:
        make(id, {"obs": "pixel"})
    assert "nearest: pixels" in str(error.value)
    assert "\n" not in str(error.value)
