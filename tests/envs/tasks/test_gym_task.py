"""Any Gymnasium id as a task: actions, observations, limits, and one clear line where
it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from vis_rpg.analysis import video
from vis_rpg.envs.make import TASKS, make_env, object_positions, task_of
from vis_rpg.envs.tasks import gym_task
from vis_rpg.envs.tasks.gym_task import GymTask, make_gym
from vis_rpg.errors import RunStopped, UserError


class Probe(gymnasium.Env):
    """Remembers the raw action; shows a picture whose brightness is the step."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        render_mode: str | None = None,
        bound: float = 3.0,
        dict_obs: bool = False,
        mode: str = "rgb_array",
    ) -> None:
        self.metadata = {"render_modes": [mode]}
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(
            np.array([[-1.0, 0.0]]), np.array([[bound, 10.0]]), dtype=np.float64
        )
        box = gymnasium.spaces.Box(-1, 1, (2, 3), np.float64)
        self.observation_space = gymnasium.spaces.Dict({"a": box}) if dict_obs else box
        self.raw: np.ndarray | None = None
        self.count = 0

    def _obs(self) -> Any:
        obs = np.full((2, 3), 0.1)
        return {"a": obs} if isinstance(self.observation_space, gymnasium.spaces.Dict) else obs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.raw = action
        self.count += 1
        return self._obs(), 1.5, False, False, {"is_success": self.count > 1}

    def render(self) -> np.ndarray:
        if self.render_mode != "rgb_array":
            raise RuntimeError("made without pictures")
        return np.full((128, 192, 3), 40 * self.count, np.uint8)


class Wide(gymnasium.ActionWrapper):
    """Takes any first action, and a second one from 2 on."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.action_space = gymnasium.spaces.Box(
            np.array([[-np.inf, 2.0]]), np.inf, (1, 2), np.float64
        )

    def action(self, action: np.ndarray) -> np.ndarray:
        return action


class Empty(Probe):
    """Nothing to do."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = gymnasium.spaces.Box(-1, 1, (0,))


@pytest.fixture(autouse=True)
def probe_id() -> Any:
    ids = {
        "Probe": Probe,
        "Empty": Empty,
        "Clipped": lambda **kwargs: gymnasium.wrappers.ClipAction(Probe(**kwargs)),
        "Wide": lambda **kwargs: Wide(Probe(**kwargs)),
    }
    for name, make in ids.items():
        gymnasium.register(f"vis_rpg_test/{name}-v0", make)
    yield
    for name in ids:
        del gymnasium.registry[f"vis_rpg_test/{name}-v0"]


PROBE = "vis_rpg_test/Probe-v0"


def stepping(monkeypatch: pytest.MonkeyPatch, step: Any) -> GymTask:
    """A probe whose step is this one, after its reset."""
    monkeypatch.setattr(Probe, "step", step)
    env = make_gym(PROBE, "state")
    env.reset(seed=0)
    return env


def line_of(id: str, obs: str = "state", **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        make_gym(id, obs, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("action", "raw"),
    [([-1, -1], [-1, 0]), ([1, 1], [3, 10]), ([0, 0.5], [1, 7.5]), ([-9, 9], [-1, 10])],
)
def test_actions_in_one_are_stretched_to_the_box(action: list[float], raw: list[float]) -> None:
    env = make_gym(PROBE, "state")
    env.reset(seed=0)
    env.step(np.array(action, np.float32))
    inner = env.unwrapped
    assert inner.raw.shape == (1, 2)
    assert np.allclose(inner.raw, [raw])
    assert inner.action_space.contains(inner.raw)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("Clipped", [-1, 0], [3, 10]), ("Wide", [-1, 2], [3, 10])]
)
def test_bounds_that_a_wrapper_leaves_open_are_those_within(
    name: str, low: list[float], high: list[float]
) -> None:
    env = make_gym(f"vis_rpg_test/{name}-v0", "state")
    env.reset(seed=0)
    for action, raw in ((-1.0, low), (1.0, high)):
        env.step(np.full(2, action, np.float32))
        assert np.allclose(env.unwrapped.raw, [raw])


@pytest.mark.parametrize(
    "reward", [np.array([1.5]), np.float32(1.5), torch.tensor(1.5), torch.tensor([[1.5]]), 1.5]
)
def test_a_reward_is_one_number_in_whatever_shape(
    reward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = stepping(monkeypatch, lambda self, action: (self._obs(), reward, False, False, {}))
    assert env.step(np.zeros(2))[1] == 1.5


def test_observations_in_a_dict_are_laid_end_to_end() -> None:
    env = make_gym(PROBE, "state", dict_obs=True)
    first, _ = env.reset(seed=0)
    assert env.observation_space.shape == (6,) and env.observation_space.contains(first)
    assert np.allclose(first, 0.1)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (
            lambda self: (self._obs(), [1.0, 2.0], False, False, {}),
            r"reward is \[1.0, 2.0\]: one number is needed",
        ),
        (
            lambda self: (self._obs(), 1.0, False, False, {"success": "no"}),
            r"info\[\"success\"\] is 'no': one number is needed",
        ),
        (
            lambda self: (np.zeros(4), 1.0, False, False, {}),
            "an observation has 4 numbers, its space .* has 6",
        ),
        (lambda self: ({"b": 1}, 1.0, False, False, {}), "an observation is not of its space"),
        (
            lambda self: (self._obs(), 1.0, False, {}),
            r".* step\(action\) returns \(observation, reward, terminated",
        ),
        (
            lambda self: (self._obs(), {}),
            r".* step\(action\) returns \(observation, reward, terminated",
        ),
    ],
)
def test_what_a_step_may_not_return_is_one_line(
    returned: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = stepping(monkeypatch, lambda self, action: returned(self))
    with pytest.raises(RunStopped, match=f"{PROBE}: {says}") as error:
        env.step(np.zeros(2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "reset",
    [lambda self, seed=None: (self._obs(), {}), lambda self, seed=None, options=None: self._obs()],
)
def test_a_reset_of_another_api_is_one_line(reset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "reset", reset)
    with pytest.raises(
        RunStopped, match=r"reset\(seed=..., options=...\) returns \(observation, info\)"
    ):
        make_gym(PROBE, "state").reset(seed=0)
    assert "reset(seed=..., options=...)" in line_of(PROBE, "pixels")


GREY = np.arange(128 * 192).reshape(128, 192) % 256


@pytest.mark.parametrize(
    "picture",
    [
        np.stack([GREY, GREY, GREY, 0 * GREY], -1).astype(np.uint8),
        GREY.astype(np.uint8),
        GREY[..., None],
        np.stack([GREY] * 3, -1) / 255,
        np.stack([GREY] * 3, -1).astype(np.float32),
        torch.tensor(np.stack([GREY] * 3, -1), dtype=torch.uint8),
    ],
    ids=["rgba", "grey", "int64", "floats to 1", "floats to 255", "tensor"],
)
def test_pictures_of_any_kind_are_rgb_for_the_agent_and_for_videos(
    picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "render", lambda self: picture)
    env = make_gym(PROBE, "pixels")
    expected = np.stack([GREY] * 3, -1)
    assert env.render().dtype == np.uint8 and np.array_equal(env.render(), expected)
    assert env.observation_space.contains(env.reset()[0])
    assert video.render(env).std() > 5


@pytest.mark.parametrize(
    "picture",
    [
        None,
        [],
        np.zeros((4, 4, 2)),
        np.zeros((0, 4, 3)),
        np.full((4, 4, 3), np.nan),
        "text",
        [[1], [1, 2]],
    ],
)
def test_what_is_no_picture_is_one_line(picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "render", lambda self: picture)
    assert f"{PROBE} draws" in line_of(PROBE, "pixels") and "use obs=state" in line_of(
        PROBE, "pixels"
    )


def test_an_id_of_a_module_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vis_rpg_mine", "vis_rpg_package"):
        (tmp_path / f"{name}.py").write_text(
            "import gymnasium\nfrom gymnasium.envs.classic_control import "
            "PendulumEnv\nprint('hello')\n"
            f"gymnasium.register('{name}/Swing-v0', PendulumEnv, max_episode_steps=9)\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert task_of(make_gym("vis_rpg_mine:vis_rpg_mine/Swing-v0", "state")).episode_length == 9
    monkeypatch.setattr(gym_task, "_packages", lambda: ["vis_rpg_not_there", "vis_rpg_package"])
    assert line_of("vis_rpg_package/Swing-v0").endswith(
        "vis_rpg_package registers it: task.id=vis_rpg_package:vis_rpg_package/Swing-v0"
    )


def test_observations_are_flat_and_success_passes_through() -> None:
    env = make_gym(PROBE, "state")
    first, info = env.reset(seed=0)
    assert env.observation_space.contains(first)
    assert first.shape == (6,)
    assert info["success"] is False
    seen = [env.step(np.zeros(2))[4]["success"] for _ in range(3)]
    assert seen == [False, True, True]


def test_pictures_are_stacked_at_64_oldest_first() -> None:
    env = make_gym(PROBE, "pixels")
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first)
    assert not first.any()
    for count in (1, 2):
        obs, *_ = env.step(np.zeros(2))
        assert env.observation_space.contains(obs)
        assert (obs[0] == 40 * (count - 1)).all()
        assert (obs[1] == 40 * count).all()
    with_dict = make_gym(PROBE, "pixels", dict_obs=True)
    assert with_dict.observation_space == env.observation_space


def test_an_id_without_a_limit_truncates_after_a_thousand_steps() -> None:
    env = make_gym(PROBE, "state")
    env.reset(seed=0)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(1000)]
    assert task_of(env).episode_length == 1000
    assert ends[-1] == (False, True)
    assert ends[:-1] == [(False, False)] * 999


def test_the_limit_of_the_id_is_the_length() -> None:
    env = make_env({"name": "gym", "id": "Pendulum-v1", "terminates": True}, "state", 4)
    env.reset()
    assert task_of(env).episode_length == 200
    assert [env.step(np.ones(1))[3] for _ in range(200)].index(True) == 199


NEAR = {"distance": 1.7, "azimuth": 0.0, "elevation": -60.0, "lookat": [0.45, -0.3, -0.3]}


def test_objects_of_a_mujoco_task_are_what_moves_and_frames_show_them() -> None:
    task = {"name": "gym", "id": "Pusher-v5", "kwargs": {"default_camera_config": NEAR}}
    env = make_env(task, "pixels", 0)
    assert task_of(env).object_names == ("tips_arm", "object")  # its goal never moves
    assert task_of(env).coverage is None
    segmentation = env.get_wrapper_attr("segmentation")
    centres, places = [], []
    for seed in range(12):
        obs, info = env.reset(seed=seed)
        assert env.observation_space.contains(obs)
        shown = segmentation(whole=True)
        assert set(np.unique(shown)) == {0, 1, 2, 3}
        np.testing.assert_array_equal(segmentation(), np.where(shown == 3, 0, shown))
        white = obs[-1].min(-1) > 180
        assert (white & (shown == 2)).sum() >= 0.9 * white.sum() > 0
        centres.append(np.argwhere(shown == 2).mean(0))
        places.append(object_positions(info)[1, :2])
    rows, columns = np.corrcoef(np.hstack([centres, places]).T)[[0, 1], [2, 3]]
    assert abs(rows) > 0.95 and abs(columns) > 0.95  # azimuth 0: x is away from the camera
    obs, *_ = env.step(env.action_space.sample())
    assert not np.array_equal(obs[0], obs[1])
    env.close()


@pytest.mark.parametrize(
    ("id", "names"),
    [
        ("Reacher-v5", ("fingertip", "target")),
        ("Ant-v5", ("torso",)),  # moves about
        ("InvertedDoublePendulum-v5", ("pole2",)),  # on a cart with a motor
        (  # led by its hand, on a base whose joints are held
            "gymnasium_robotics:FetchPush-v4",
            (
                "robot0:head_camera_depth_optical_frame",
                "robot0:r_gripper_finger_link",
                "robot0:l_gripper_finger_link",
                "object0",
            ),
        ),
        ("Pendulum-v1", ()),  # no model of MuJoCo
    ],
)
def test_objects_of_robots_that_move_about_are_trunks_else_last_links(
    id: str, names: tuple[str, ...]
) -> None:
    env = make_env({"name": "gym", "id": id}, "state", 0)
    assert task_of(env).object_names == names
    assert len(object_positions(env.reset(seed=0)[1])) == len(names)
    assert not env.has_wrapper_attr("segmentation")
    env.close()


def test_an_object_on_a_frame_is_where_it_moves() -> None:
    env = make_gym("gymnasium_robotics:AdroitHandDoor-v1", "state")
    before = object_positions(env.reset(seed=0)[1])[task_of(env).object_names.index("door")]
    inner: Any = env.unwrapped
    inner.data.joint("door_hinge").qpos[:] = 1.2
    mujoco.mj_forward(inner.model, inner.data)
    after = env.step(np.zeros(env.action_space.shape))[-1]["objects"]
    assert np.linalg.norm(after[task_of(env).object_names.index("door")] - before) > 0.1
    env.close()


def test_saving_is_refused_not_faked() -> None:
    env = make_gym(PROBE, "state")
    with pytest.raises(NotImplementedError, match="Probe-v0"):
        env.get_state()
    with pytest.raises(NotImplementedError, match="Probe-v0"):
        env.set_state({})


def test_an_unknown_id_names_the_nearest() -> None:
    assert "task.id=Pushr-v5" in line_of("Pushr-v5")
    assert "nearest: Pusher-v5" in line_of("Pushr-v5")
    assert "nearest: Pendulum-v1" in line_of("Pendulun")


def test_what_cannot_be_trained_is_one_line() -> None:
    assert "Discrete" in line_of("CartPole-v1")
    assert "unbounded" in line_of(PROBE, bound=np.inf)
    assert "holds no number" in line_of("vis_rpg_test/Empty-v0")
    assert "use obs=state" in line_of(PROBE, "pixels", mode="human")
    assert "cannot be made" in line_of(PROBE, nonsense=1)
    assert "nearest: pixels" in line_of(PROBE, "pixel")


def test_a_picture_that_fails_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "render", lambda self: 1 / 0)
    line = line_of(PROBE, "pixels")
    assert PROBE in line
    assert "ZeroDivisionError" in line


@pytest.mark.parametrize("name", ["bandit", "maze", "block_push"])
def test_the_factory_makes_the_tasks_by_their_word(name: str) -> None:
    env = make_env({"name": name, "terminates": False}, "state", 0)
    assert task_of(env).name == name


def test_the_factory_hands_blocks_and_seeds_on() -> None:
    one, two = (make_env({"name": "block_push", "blocks": blocks}, "state", 7) for blocks in (1, 2))
    assert (one.observation_space.shape, two.observation_space.shape) == ((4,), (6,))
    assert np.array_equal(one.action_space.sample(), two.action_space.sample())
    assert one.unwrapped.np_random.uniform() == two.unwrapped.np_random.uniform()


def test_the_factory_refuses_in_one_line() -> None:
    for task, words in (
        ({"name": "block_pus"}, ["task=block_pus", "nearest: block_push", *TASKS]),
        ({"name": "gym"}, ["task.id=Pusher-v5"]),
        ({"name": "maze", "kwargs": {"rooms": 3}}, ["task=maze", "rooms"]),
        ({"name": "block_push", "blocks": 5}, ["blocks=5"]),
    ):
        with pytest.raises(UserError) as error:
            make_env(task, "state", 0)
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words)
