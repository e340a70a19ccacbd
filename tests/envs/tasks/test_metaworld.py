"""Meta-World: its own scripted policies solve the two tasks through our wrapper, and any of its
tasks is resumed exactly."""

from __future__ import annotations

import multiprocessing
from typing import Any

import gymnasium
import metaworld.env_dict
import numpy as np
import pytest
import torch
from metaworld.policies import (
    SawyerBasketballV3Policy,
    SawyerDoorOpenV3Policy,
    SawyerStickPullV3Policy,
)

from vis_rpg.envs.make import make_env, task_of
from vis_rpg.envs.tasks.metaworld import OBSERVED, REPEAT, MetaWorld, inserted
from vis_rpg.envs.tasks.mujoco_task import geoms_under
from vis_rpg.errors import UserError

POLICIES = {"basketball-v3": SawyerBasketballV3Policy, "stick-pull-v3": SawyerStickPullV3Policy}


def solved(name: str, policy: Any, episodes: int) -> float:
    """The share of episodes in which the library's scripted policy earns a reward."""
    env = MetaWorld(name)
    rewards = np.zeros(episodes)
    for episode in range(episodes):
        obs, _ = env.reset(seed=0) if episode == 0 else env.reset()
        for _ in range(task_of(env).episode_length):
            obs, reward, *_ = env.step(policy.get_action(obs[:OBSERVED].astype(np.float64)))
            rewards[episode] += reward
            if reward:
                break
    return float((rewards > 0).mean())


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("name", POLICIES)
def test_the_librarys_own_policy_solves_most_episodes(name: str) -> None:
    assert solved(name, POLICIES[name](), 8) >= 0.6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("name", POLICIES)
def test_the_librarys_own_policy_solves_four_in_five_of_fifty_episodes(name: str) -> None:
    assert solved(name, POLICIES[name](), 50) >= 0.8


@pytest.mark.filterwarnings("ignore:Constant")
def test_any_task_is_had_by_its_name_and_can_be_solved() -> None:
    env = make_env({"family": "metaworld", "name": "door-open-v3"}, "state")
    assert task_of(env).object_names == ("fingertips", "object")
    assert solved("door-open-v3", SawyerDoorOpenV3Policy(), 2) == 1


def test_the_state_begins_with_what_the_library_observes() -> None:
    ours = MetaWorld("stick-pull-v3")
    ours.reset(seed=4)
    theirs: Any = metaworld.env_dict.ALL_V3_ENVIRONMENTS["stick-pull-v3"]()
    theirs._set_task_called, theirs._partially_observable = True, False
    del theirs.sawyer_observation_space
    theirs._last_rand_vec = ours.get_state()["vector"]
    seen, _ = theirs.reset()
    state = ours._state()
    assert np.allclose(state[:OBSERVED], seen, atol=1e-6)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)):
        state, reward, *_ = ours.step(action)
        for _ in range(REPEAT):
            seen, _, _, _, info = theirs.step(action)
        assert np.allclose(state[:OBSERVED], seen, atol=1e-4)
        assert reward == float(info["success"])


@pytest.mark.filterwarnings("ignore:Constant")
def test_touching_is_what_the_library_finds() -> None:
    env, policy = MetaWorld("stick-pull-v3"), SawyerStickPullV3Policy()
    library, stick, seen = env._env, env.model.geom("objGeom").id, []
    obs, _ = env.reset(seed=0)
    for _ in range(50):
        obs, *_ = env.step(policy.get_action(obs[:OBSERVED].astype(np.float64)))
        seen.append([library.touching_object(stick), type(library).touching_object(library, stick)])
    ours, theirs = np.transpose(seen)
    assert (ours == theirs).all() and 0 < ours.sum() < len(ours)


@pytest.mark.parametrize("name", ["stick-pull-v3", "assembly-v3", "pick-place-wall-v3"])
def test_the_random_vector_does_not_wait_for_the_hand(name: str) -> None:
    env, theirs = MetaWorld(name), metaworld.env_dict.ALL_V3_ENVIRONMENTS[name]()
    theirs._set_task_called, theirs.seeded_rand_vec, theirs._freeze_rand_vec = True, True, False
    for seed in range(3):
        env.reset(seed=seed)
        theirs.np_random = np.random.default_rng(seed)
        theirs.reset_model()
        np.testing.assert_array_equal(env.get_state()["vector"], theirs._last_rand_vec)


def test_goals_differ_by_episode_follow_the_seed_and_are_seen() -> None:
    goals = []
    for _ in range(2):
        env = MetaWorld("stick-pull-v3")
        states = [env.reset(seed=5)[0], *(env.reset()[0] for _ in range(3))]
        goals.append(np.array([state[OBSERVED - 3 : OBSERVED] for state in states]))
        assert np.allclose(goals[-1][-1], env._env._target_pos)
    assert np.array_equal(*goals)
    assert len(np.unique(goals[0], axis=0)) == 4


def test_an_episode_does_not_depend_on_the_one_before() -> None:
    fresh, used = MetaWorld("drawer-open-v3"), MetaWorld("drawer-open-v3")
    used.reset(seed=1)
    for _ in range(10):
        used.step(np.ones(4))
    first, second = fresh.reset(seed=2)[0], used.reset(seed=2)[0]
    assert np.array_equal(first, second)
    assert np.array_equal(fresh.step(np.ones(4))[0], used.step(np.ones(4))[0])


@pytest.mark.parametrize(
    "name", ["door-open-v3", "hammer-v3"]
)  # a hinge, and a hammer that the library starts inside the table
def test_the_objects_of_any_task_are_in_many_places_at_scattered_starts(name: str) -> None:
    env = MetaWorld(name)
    env.reset(seed=0)
    places = np.array(
        [env.reset(options={"randomize": True})[1]["objects"][:2, :2] for _ in range(10)]
    )
    assert (np.ptp(places, axis=0) > 0.25).all()


def continues(name: str) -> None:
    """Raises AssertionError unless a saved state of a task continues bit for bit in an instance
    that has seen another episode."""
    env, other = MetaWorld(name), MetaWorld(name)
    other.reset(seed=9)
    env.reset(seed=1)
    actions = np.random.default_rng(1).uniform(-1, 1, (30, 4))
    for action in actions[:10]:
        env.step(action)
    other.set_state(env.get_state())
    for action in actions[10:]:
        ours, theirs = env.step(action), other.step(action)
        assert np.array_equal(ours[0], theirs[0])
        assert np.array_equal(ours[4]["objects"], theirs[4]["objects"])
        assert ours[1] == theirs[1]
    assert np.array_equal(env.reset()[0], other.reset()[0])
    located = task_of(env).object_coordinates(torch.as_tensor(env._state()))
    assert located.shape == (7, 1)
    assert located.abs().max() < 1.5
    assert set(env.labels) == set(range(1 + len(env.task.object_names)))  # all objects have geoms
    assert np.isfinite(env._state()).all()


@pytest.mark.parametrize("name", ["bin-picking-v3", "window-open-v3", "plate-slide-v3"])
def test_a_saved_state_holds_what_the_library_keeps_beside_the_physics(name: str) -> None:
    continues(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(metaworld.env_dict.ALL_V3_ENVIRONMENTS))
def test_every_task_of_the_library_is_resumed_exactly(name: str) -> None:
    continues(name)


@pytest.mark.parametrize(
    ("name", "bodies"),
    [
        ("basketball-v3", ["bsktball"]),
        ("stick-pull-v3", ["stick", "object"]),
        ("door-open-v3", ["door_link"]),
        ("hammer-v3", ["hammer", "nail_link"]),
        ("peg-unplug-side-v3", ["plug1"]),
    ],
)
def test_an_object_is_the_geoms_that_move_with_its_position(name: str, bodies: list[str]) -> None:
    env = MetaWorld(name)
    for index, body in enumerate(bodies):
        assert np.flatnonzero(env.labels[:-1] == 2 + index).tolist() == geoms_under(env.model, body)


@pytest.mark.parametrize("name", POLICIES)
def test_positions_reported_are_where_the_mask_shows_the_objects(name: str) -> None:
    env = MetaWorld(name, obs="pixels")
    for seed in range(5):
        _, info = env.reset(seed=seed)
        mask = env.segmentation()
        for index in range(1, 1 + len(env.task.object_names)):
            assert (mask == index).sum() >= 15
        for geom, position in zip(
            np.flatnonzero(env.labels[:-1] == 2)[:1], info["objects"][1:2], strict=True
        ):
            assert np.linalg.norm(env.data.geom_xpos[geom] - position) < 0.05


@pytest.mark.parametrize("name", POLICIES)
def test_the_sky_is_the_librarys_grey(name: str) -> None:
    env = MetaWorld(name, obs="pixels")
    env.reset(seed=0)
    sky = env._camera(64).geoms(env.data) < 0
    assert sky.sum() > 100
    assert np.unique(env._frame(64)[sky], axis=0).tolist() == [
        [127, 126, 122]
    ]  # its .50 .495 .48, without light


def test_leaving_out_what_lies_beside_the_picture_changes_no_pixel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = MetaWorld("basketball-v3", obs="pixels")
    env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 4)):
        seen = env.step(action)[0][1]
        camera = env._camera(64)
        assert camera._outside(env.data).any()
        with monkeypatch.context() as patch:
            patch.setattr(camera, "_outside", lambda data: np.zeros(env.model.ngeom, bool))
            assert np.array_equal(camera.render(env.data), seen)


@pytest.mark.parametrize("name", ["basketball-v3", "stick-pull-v3"])
def test_scaled_coordinates_are_those_of_the_paper(name: str) -> None:
    env = MetaWorld(name)
    state, info = env.reset(seed=0)
    tcp, first, *second = info["objects"]
    lengths = [first - second[0], first - tcp] if second else [tcp - first, first]
    expected = np.concatenate(lengths) / 0.4
    expected = np.append(np.sign(expected) * np.log1p(np.abs(expected)), state[3])
    assert np.allclose(
        task_of(env).object_coordinates(torch.as_tensor(state))[:, 0], expected, atol=1e-6
    )


def in_another_process(queue: Any) -> None:
    env = make_env({"name": "metaworld_basketball"}, "state", seed=3)
    queue.put(env.step(np.ones(4, np.float32))[0])


def test_a_spawned_process_makes_the_same_environment() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=in_another_process, args=(queue,))
    process.start()
    theirs = queue.get(timeout=120)
    process.join()
    env = make_env({"name": "metaworld_basketball"}, "state", seed=3)
    assert np.array_equal(env.step(np.ones(4, np.float32))[0], theirs)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        gymnasium.make("vis_rpg/MetaWorld-v0", disable_env_checker=True, name="door-opn-v3")
    assert "nearest: door-open-v3" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("name", POLICIES)
def test_all_milestones_lie_between_the_start_and_success(name: str) -> None:
    env, policy = MetaWorld(name), POLICIES[name]()
    obs, info = env.reset(seed=1)
    milestones, reward = task_of(env).milestones, 0.0
    assert milestones and not any(holds(info["objects"]) for holds in milestones.values())
    met = dict.fromkeys(milestones, False)
    while not reward:
        obs, reward, _, truncated, info = env.step(
            policy.get_action(obs[:OBSERVED].astype(np.float64))
        )
        met = {key: met[key] or bool(holds(info["objects"])) for key, holds in milestones.items()}
        assert not truncated
    assert all(met.values())


@pytest.mark.filterwarnings("ignore:Constant")
def test_the_stick_is_inserted_where_the_library_says_so() -> None:
    env, policy = MetaWorld("stick-pull-v3"), SawyerStickPullV3Policy()
    obs, _ = env.reset(seed=1)
    agreed = []
    for _ in range(60):
        obs, *_, info = env.step(policy.get_action(obs[:OBSERVED].astype(np.float64)))
        end, at = env._env._get_site_pos("stick_end"), info["objects"]
        agreed.append(env._env._stick_is_inserted(at[2], end) == inserted(at))
    assert np.mean(agreed) > 0.9
