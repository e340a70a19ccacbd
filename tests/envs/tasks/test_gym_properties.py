"""Any environment of Gymnasium's API is a task, or says in one line why it is none."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vis_rpg.envs.tasks.gym_task import make_gym
from vis_rpg.errors import RunStopped, UserError

ID = "vis_rpg_test/Drawn-v0"
SETTINGS = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

numbers = st.floats(-1e3, 1e3, width=16)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def boxes(draw: Any, dtypes: Any, infinite: bool = True, shape: Any = shapes) -> spaces.Box:
    kind, size = np.dtype(draw(st.sampled_from(dtypes))), draw(shape)
    if kind.kind == "f":
        ends = draw(st.tuples(numbers, numbers).map(sorted))
        low, high = (np.full(size, end, kind) for end in ends)
        if infinite and draw(st.booleans()):
            low[...] = -np.inf
        if infinite and draw(st.booleans()):
            high[...] = np.inf
    else:
        limits = np.iinfo(kind)
        ends = draw(st.tuples(*[st.integers(limits.min, limits.max)] * 2).map(sorted))
        low, high = (np.full(size, end, kind) for end in ends)
    return spaces.Box(low, high, size, kind.type)


plain = st.one_of(
    boxes(["float16", "float32", "float64", "uint8", "int8", "int64"]),
    st.integers(1, 5).map(spaces.Discrete),
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.integers(1, 4).map(spaces.MultiBinary),
    st.just(spaces.Text(4)),
    st.just(spaces.Sequence(spaces.Discrete(2))),
)
observation_spaces = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: spaces.Tuple(tuple(each))),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(spaces.Dict),
    ),
    max_leaves=4,
)
action_spaces = st.one_of(
    boxes(["float16", "float32", "float64"]), boxes(["float32"], infinite=False), plain
)
rewards = st.one_of(
    numbers,
    st.booleans(),
    st.integers(-5, 5),
    numbers.map(np.float32),
    numbers.map(np.array),
    numbers.map(lambda x: np.array([[x]])),
    st.just(np.array([1.0, 2.0])),
    st.sampled_from([None, "1", 1j]),
)
flags = st.sampled_from([True, 1, np.True_, np.array(True), np.array([True]), 0, np.False_])
pictures = st.one_of(
    st.builds(
        lambda shape, kind, value: (
            np.full(shape, np.nan_to_num(value, posinf=300)).astype(kind)
            if np.dtype(kind).kind != "f"
            else np.full(shape, value, kind)
        ),
        st.tuples(st.integers(0, 90), st.integers(0, 90)).flatmap(
            lambda side: st.sampled_from([side, *((*side, c) for c in (1, 2, 3, 4))])
        ),
        st.sampled_from(["uint8", "float32", "float64", "bool", "int64"]),
        st.sampled_from([0, 0.5, 1, 200, -1, np.nan, np.inf]),
    ),
    st.sampled_from([None, "picture", [], [[1, 2], [3]]]),
)


class Drawn(gymnasium.Env[Any, Any]):
    """An environment of given spaces that gives what it was told to."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None, **given: Any) -> None:
        self.render_mode = render_mode
        self.observation_space = given.get("observation", spaces.Box(-1, 1, (2,)))
        self.action_space = given.get("action", spaces.Box(-1, 1, (2,)))
        self.given, self.taken = given, None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.taken = action
        given = self.given
        info = {"success": given["success"]} if "success" in given else {}
        flag = given.get("flag", False)
        return self.observation_space.sample(), given.get("reward", 0.0), flag, flag, info

    def render(self) -> Any:
        return self.given.get("picture")


@pytest.fixture(autouse=True, scope="module")
def registered() -> Any:
    gymnasium.register(ID, Drawn)
    yield
    del gymnasium.registry[ID]


def tried(obs: str, **given: Any) -> tuple[Any, ...] | None:
    """What a step gives, and the environment; None where a line says why there is none."""
    try:
        env = make_gym(ID, obs, **given)
        first, _ = env.reset(seed=0)
        assert env.observation_space.contains(first), "first observation"
        with np.errstate(over="ignore"):
            return *env.step(env.action_space.sample()), env
    except (UserError, RunStopped) as error:
        assert "\n" not in str(error)
        assert "vis_rpg_test/Drawn-v0" in str(error)
        return None


@SETTINGS
@given(observation=observation_spaces)
def test_any_observation_is_numbers_or_one_line(observation: spaces.Space[Any]) -> None:
    found = tried("state", observation=observation)
    if found:
        obs, env = found[0], found[-1]
        assert env.observation_space.contains(obs)
        assert obs.dtype == np.float32
        assert obs.shape == (spaces.flatdim(observation),)


@SETTINGS
@given(action=action_spaces)
def test_any_bounded_box_of_real_numbers_is_acted_in(action: spaces.Space[Any]) -> None:
    found = tried("state", action=action)
    real = isinstance(action, spaces.Box) and action.dtype.kind == "f"
    if not real or not action.low.size or not np.isfinite([action.low, action.high]).all():
        assert found is None
        return
    assert found is not None
    env = found[-1]
    assert isinstance(env.unwrapped.taken, np.ndarray)
    assert action.contains(env.unwrapped.taken)
    for end, bound in ((-1.0, action.low), (1.0, action.high)):
        env.step(np.full(env.action_space.shape, end, np.float32))
        np.testing.assert_array_equal(env.unwrapped.taken, bound)


@SETTINGS
@given(reward=rewards, flag=flags, success=st.one_of(flags, rewards))
def test_any_number_is_a_reward_and_any_flag_a_flag(reward: Any, flag: Any, success: Any) -> None:
    found = tried("state", reward=reward, flag=flag, success=success)
    values = np.asarray(reward), np.asarray(success)
    single = [value.size == 1 and value.dtype.kind in "biuf" for value in values]
    assert (found is not None) == all(single)
    if found:
        _, paid, terminated, truncated, info, _ = found
        assert paid == float(np.asarray(reward).item())
        assert terminated is truncated is bool(flag)
        assert info["success"] is bool(np.asarray(success).item())


@SETTINGS
@given(picture=pictures)
def test_any_picture_is_a_frame_or_one_line(picture: Any) -> None:
    found = tried("pixels", picture=picture)
    if found:
        obs = found[0]
        assert obs.shape == (2, 64, 64, 3)
        assert obs.dtype == np.uint8
