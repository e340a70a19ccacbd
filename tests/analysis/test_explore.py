"""The explorer: its page is whole by itself, true to the run, and says what a run lacks."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.runs import CATEGORICAL, GAUSSIAN, ROOT, WITHOUT_Z, final, lines, run_script, trained
from vis_rpg.analysis.curves import average
from vis_rpg.analysis.diagnosis import open_loop, record_episode
from vis_rpg.analysis.evaluation import episode_seed, play
from vis_rpg.analysis.explored_states import read_visits
from vis_rpg.analysis.explorer import page, rollouts, seeds, states
from vis_rpg.analysis.explorer.bonus import visit_bonus
from vis_rpg.analysis.explorer.slots import find_failures
from vis_rpg.envs.make import task_of
from vis_rpg.envs.tasks.block_push import make_task
from vis_rpg.envs.tasks.maze import TASK as MAZE
from vis_rpg.training.coverage import CoverageCounter
from vis_rpg.training.episodes import recorded_episodes
from vis_rpg.training.load import load
from vis_rpg.training.published import locate

AGENTS = sorted((ROOT / "assets" / "agents").iterdir())
SAC = ("task=maze", "agent=sac", "steps=100")
SLOTS = ("task=block_push", "task.blocks=1", "obs=pixels", "steps=150")


@pytest.fixture(autouse=True)
def few_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "COUNT", 2)


def whole_data_of(path: Path) -> dict[str, Any]:
    """What a page was filled with."""
    found = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def data_of(path: Path) -> dict[str, Any]:
    """What the page of one run was filled with."""
    data = whole_data_of(path)
    assert data["different"] is None
    [run] = data["runs"]
    return run


# The map ------------------------------------------------------------------------------------------


def test_visited_cells_are_those_that_coverage_counts() -> None:
    rng, task = np.random.default_rng(0), make_task(2)
    positions = rng.normal(0, 1, (300, 3, 2))
    step = np.repeat(np.arange(5, 305, 5), 5)
    assert task.coverage is not None
    counter, before = CoverageCounter(task), CoverageCounter(task)
    counter.add(positions)
    before.add(positions[step <= 100])
    counted = [task.object_names.index(name) for name in task.coverage.objects]
    first = np.stack([states.first_visits(step, positions[:, k], task.coverage) for k in counted])
    assert (first != states.NEVER).mean() == counter.value
    assert ((first != states.NEVER) & (first <= 100)).mean() == before.value


def test_a_cell_has_the_interaction_of_its_first_visit() -> None:
    places = np.array([[-4.9, -4.9], [4.9, 4.9], [-4.9, -4.9]])
    assert MAZE.coverage is not None
    first = states.first_visits(np.array([5, 10, 15]), places, MAZE.coverage)
    assert first[0, 0] == 5 and first[-1, -1] == 10
    assert (first == states.NEVER).sum() == first.size - 2


@pytest.mark.parametrize(
    ("overrides", "objects"), [(GAUSSIAN, 1), (CATEGORICAL, 3), (WITHOUT_Z, 1)]
)
def test_the_map_draws_visits_of_the_record_each_z_in_one_colour(
    overrides: tuple[str, ...], objects: int
) -> None:
    run = trained(*overrides)
    visits, task = read_visits(run), task_of(load(run)[1])
    view = states.plane_of_places(
        seeds.read_seeds(run)[0].settings["agent.latent.kind"], visits, task
    )
    own = states.seed_map(visits, task, view, most=60)
    assert len(own["step"]) == 60 == len(own["z"]) and len(own["x"]) == len(own["y"]) == objects
    places = visits.positions[:, 0, list(task.plane)].round(2).tolist()
    recorded = {(step, *place) for step, place in zip(visits.step, places, strict=True)}
    drawn = zip(own["step"], np.round(own["x"][0], 2), np.round(own["y"][0], 2), strict=True)
    near = [
        min(abs(x - a) + abs(y - b) for s, a, b in recorded if s == step) for step, x, y in drawn
    ]
    assert max(near) < 0.03
    colours: dict[str, set[int]] = {}
    for words, colour in zip(own["z"], own["z_colour"], strict=True):
        colours.setdefault(words, set()).add(colour)
    assert all(len(each) == 1 for each in colours.values())
    assert (len(colours) > 1) == (overrides != WITHOUT_Z)


def test_the_plane_of_z_holds_the_numbers_that_move_things() -> None:
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(80, 6)), 5, axis=0)
    moved = z[:, [4, 5]][:, None] + 0.01 * rng.normal(size=(400, 1, 2))
    visits = states.Visits(np.arange(400), moved, z)
    places = states.plane_of_places("gaussian", visits, MAZE).places(z)
    told = np.linalg.lstsq(places, z[:, 4:], rcond=None)[0]
    assert np.abs(places @ told - z[:, 4:]).max() < 0.3


@pytest.mark.parametrize("words", [GAUSSIAN, CATEGORICAL], ids=["maze", "block_push"])
def test_the_bonus_of_visits_is_that_of_their_states(words: tuple[str, ...]) -> None:
    actor, env = load(trained(*words))
    agent, rng = actor.agent, np.random.default_rng(0)
    drawn = [
        env.reset(seed=int(seed), options={"randomize": True})
        for seed in rng.integers(99, 9**9, 50)
    ]
    states_seen = torch.tensor(np.stack([obs for obs, _ in drawn]))
    read = agent.model.perception.rnd_input({"state": states_seen[:, None]})[:, 0]
    agent.rnd.statistics.update(agent.rnd.prediction_error(read), torch.ones(()))
    expected = agent.bonus_scale * agent.rnd.bonus(read)
    positions = np.stack([info["objects"] for _, info in drawn]).astype(np.float32)
    found = visit_bonus(agent, env, positions)
    assert found == pytest.approx(expected.numpy(), abs=1e-2) and found.std() > 0.1


def test_where_the_bonus_reads_more_than_places_the_map_says_so() -> None:
    for words in (("exploration.rnd_input=moving_slots",), ("exploration=none",)):
        run = trained("task=block_push", "steps=20", *words)
        visits, (actor, env) = read_visits(run), load(run)
        task = task_of(env)
        view = states.plane_of_places("gaussian", visits, task)
        data = states.map_data(
            [(0, visits)], task, [view], [partial(visit_bonus, actor.agent, env)]
        )
        assert "RND" in data["no_bonus"] and "bonus" not in data["seeds"][0]


# Curves and settings ------------------------------------------------------------------------------


def seed_of(number: int, values: list[float], **settings: Any) -> seeds.Seed:
    metrics = [
        {"step": 10 * (i + 1), "success": value, "wall_s": 1.0} for i, value in enumerate(values)
    ]
    known = {"task.name": "maze", "obs.kind": "state", "seed": number, "out": f"runs/{number}"}
    return seeds.Seed(number, Path("runs"), known | settings, metrics, "abc", 1.0)


def test_the_mean_over_seeds_is_that_of_plot_curves() -> None:
    a, b = seed_of(0, [0.0, 0.5, 1.0]), seed_of(1, [1.0, 0.5, 0.0])
    curve = seeds.curves([a, b])["success"]
    x = np.array([10, 20, 30])
    expected = average("", [np.stack([x, [0, 0.5, 1]]), np.stack([x, [1, 0.5, 0]])])
    assert curve["mean"]["y"] == expected.mean.tolist() == [0.5, 0.5, 0.5]
    assert curve["mean"]["low"] == expected.interval[0].tolist()


def test_a_task_without_success_shows_its_coverage_first() -> None:
    seed = seed_of(0, [0.0, 0.0])
    for line in seed.metrics:
        line |= {"return": 0.0, "coverage": 0.2, "alpha": 0.1}
    assert list(seeds.curves([seed])) == ["coverage", "success", "return", "alpha"]
    seed.metrics[0]["success"] = 0.5
    assert list(seeds.curves([seed])) == ["success", "coverage", "return", "alpha"]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    values = np.random.default_rng(0).uniform(size=5000).round(3).tolist()
    (curve,) = seeds.curves([seed_of(0, values)])["success"]["seeds"]
    assert len(curve["x"]) == seeds.MOST_LINES
    assert (curve["x"][0], curve["x"][-1]) == (10, 50_000)
    assert (curve["y"][0], curve["y"][-1]) == (values[0], values[-1])


def test_settings_that_differ_are_named_but_for_the_seed_and_its_folder() -> None:
    same = [seed_of(0, [0.0]), seed_of(1, [0.0])]
    assert seeds.header(same, "x")["different"] == []
    other = [seed_of(0, [0.0], **{"agent.lr": 1}), seed_of(1, [0.0], **{"agent.lr": 2})]
    assert seeds.header(other, "x")["different"] == ["agent.lr"]
    rows = {key: values for key, values, _ in seeds.config_table(other)["rows"]}
    assert rows["agent.lr"] == ["1", "2"] and rows["task.name"] == ["maze"]


# Several runs -------------------------------------------------------------------------------------


def test_what_differs_between_runs_is_all_that_is_told_of_their_settings() -> None:
    lr = "agent.lr"
    runs = {
        "a": [seed_of(0, [0.0], **{lr: 1}), seed_of(1, [0.0], **{lr: 1})],
        "b": [seed_of(2, [0.0], **{lr: 2, "agent.new": None})],
        "c": [seed_of(0, [0.0], **{lr: 1}), seed_of(1, [0.0], **{lr: 3})],
    }
    found = seeds.comparison(runs)
    assert found == {"keys": [lr, "agent.new"], "rows": [["1", "-"], ["2", "null"], ["1, 3", "-"]]}
    assert seeds.comparison({"a": runs["a"], "again": runs["a"]}) == {"keys": [], "rows": [[], []]}


def test_runs_are_named_by_their_folders_and_by_more_where_these_are_alike(tmp_path: Path) -> None:
    for name in ("sweep/x", "sweep/y", "other/x/seed-0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "sweep" / "ray").mkdir()
    sweep, other = tmp_path / "sweep", tmp_path / "other" / "x"
    assert seeds.find_runs(str(sweep)) == {"x": sweep / "x", "y": sweep / "y"}
    assert seeds.find_runs(str(other)) == {str(other): other}
    assert seeds.find_runs([str(other), f"{other}/"]) == {str(other): other}, "one run"
    both = seeds.find_runs([str(sweep), str(other)])
    assert both == {str(path): path for path in (sweep / "x", sweep / "y", other)}
    assert seeds.find_runs([str(other), "zoo:block_push2-state"]).keys() == {
        "x",
        "zoo:block_push2-state",
    }


def test_several_runs_share_a_page_without_those_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bokeh")
    sweep = tmp_path / "sweep"
    for name, words in (("rpg", GAUSSIAN), ("mbsac", WITHOUT_Z)):
        shutil.copytree(trained(*words), sweep / name)
    (sweep / "dead").mkdir()
    (sweep / "dead" / "config.yaml").write_text("{")
    assert run_script(monkeypatch, "explore", f"run={sweep}") == 0
    assert "left out" in capsys.readouterr().err
    data = whole_data_of(sweep / "report.html")
    assert [run["name"] for run in data["runs"]] == ["mbsac", "rpg"]
    assert "dead" in data["different"]["lost"][0]
    columns = zip(*data["different"]["rows"], strict=True)
    told = dict(zip(data["different"]["keys"], columns, strict=True))
    assert told["agent.latent.kind"] == ("none", "gaussian") and "task.name" not in told
    for run in data["runs"]:
        assert len(run["figures"]) == 3 and len(run["rollouts"]["rollouts"]) == 2
    listed = f"run=[{sweep / 'rpg'},{sweep / 'mbsac'}]"
    assert run_script(monkeypatch, "explore", listed, "serve=true") == 2
    assert "2 runs" in capsys.readouterr().err
    assert run_script(monkeypatch, "explore", f"run=[{sweep / 'dead'},{tmp_path / 'no'}]") == 2
    assert "none of these is a run" in capsys.readouterr().err


# Rollouts -----------------------------------------------------------------------------------------


def test_mean_actions_do_not_depend_on_noise() -> None:
    actor, env = load(trained(*GAUSSIAN))
    played = []
    for seed in (0, 1):
        actor.generator.manual_seed(0)
        actor.select_action(explore=True)
        z = torch.full((actor.agent.space.dim,), 0.3)
        torch.manual_seed(seed)
        played.append([step.objects for step in play(actor, env, 5, z)])
    assert np.array_equal(*played)
    actor.generator.manual_seed(0)
    first = record_episode(actor, env, 5, explore=False)
    actor.generator.manual_seed(0)
    again = record_episode(actor, env, 5, explore=False)
    sampled = record_episode(actor, env, 5)
    assert torch.equal(first.a, again.a) and not torch.equal(first.a, sampled.a)
    with torch.no_grad():
        mean = actor.agent.pi.mean_action(first.s[:-1], first.z.expand(len(first.a), -1))
    assert torch.allclose(first.a, mean, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (GAUSSIAN, {"reward", "bonus", "Q", "log p(z|s,a)"}),
        (WITHOUT_Z, {"reward", "bonus", "Q"}),
        (SAC, {"reward"}),
    ],
)
def test_each_step_has_what_the_agents_parts_make_of_it(
    overrides: tuple[str, ...], names: set[str]
) -> None:
    actor, env = load(trained(*overrides))
    for rollout in rollouts.record(actor, env, seed=0, count=2).rollouts:
        steps = len(rollout.reel.rewards)
        assert set(rollout.series) == names
        assert all(len(values) == steps for values in rollout.series.values())
        assert len(rollout.reel.success) == steps + 1
        assert rollout.reel.steps[0] == 0 and rollout.reel.steps[-1] == steps
        assert len(rollout.reel.pictures) == len(rollout.reel.steps)


def test_a_rollout_is_the_episode_that_its_z_plays() -> None:
    actor, env = load(trained(*CATEGORICAL))
    recorded = rollouts.record(actor, env, seed=0, count=6)
    assert [int(rollout.z.argmax()) for rollout in recorded.rollouts] == [0, 1, 2, 3, 4]
    for rollout in recorded.rollouts:
        *_, last = play(actor, env, episode_seed(0, 0), torch.as_tensor(rollout.z))
        assert sum(rollout.reel.rewards) == pytest.approx(last.total)
        assert rollout.reel.success[-1] == last.success


def test_reward_is_shown_as_the_critics_learn_it() -> None:
    actor, env = load(trained(*CATEGORICAL))
    actor.agent.reward_scale.fill_(3.0)
    (rollout,) = rollouts.record(actor, env, seed=0, count=1).rollouts[:1]
    assert rollout.series["reward"] == pytest.approx([3 * own for own in rollout.reel.rewards])


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_a_published_agent_is_shown_as_the_seed_that_its_card_names(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    assert page.acting_seed(seeds.read_seeds(folder), folder).number == card["seed"]


EPISODES = ("task=maze", "steps=300", "seeds=2")


@pytest.mark.parametrize("agent", ["rpg", "sac"])
def test_episodes_of_training_play_again_along_the_way_that_they_went(agent: str) -> None:
    run = trained("task=maze", f"agent={agent}", "steps=300")
    actor, env = load(run)
    recorded = recorded_episodes(final(run))
    played, lost = rollouts.replay(actor, env, recorded)
    assert (len(played), lost) == (5, 0)
    visits = read_visits(run)
    for own, episode in zip(played, recorded, strict=True):
        [(x, y)] = rollouts.path(own.reel, task_of(env))
        way = np.stack([x, y], 1)[1:]
        own_visits = (visits.z == own.z).all(1)[:250] if visits.z.shape[1] else np.ones(250, bool)
        places = visits.positions[:250][own_visits][:, 0]
        assert all(np.abs(places - place).max(1).min() < 1e-3 for place in way)
        assert own.began == episode.began == 0 and np.ptp(way) > 0
        assert len(own.series["reward"]) == len(episode.action) == len(way)
    recorded[2].reward[3] += 1
    assert rollouts.replay(actor, env, recorded)[1] == 1


def test_the_models_error_is_that_of_open_loop_predictions_from_each_step() -> None:
    actor, env = load(trained(*GAUSSIAN))
    episode = record_episode(actor, env, 0)
    for steps in (1, 3):
        errors = rollouts.model_error(actor.agent, episode, steps)
        share, _, _ = open_loop(actor.agent, [episode], steps)
        assert len(errors) == len(episode.a) - steps + 1
        assert float(errors.mean() / episode.s.var(0).mean()) == pytest.approx(float(share[-1]))
    assert len(rollouts.model_error(actor.agent, episode, len(episode.a) + 1)) == 0


@pytest.mark.parametrize("words", [GAUSSIAN, SAC], ids=["rpg", "sac"])
def test_errors_are_shares_of_the_variance_of_states_where_there_is_a_model(
    words: tuple[str, ...],
) -> None:
    actor, env = load(trained(*words))
    recorded = rollouts.record(actor, env, seed=0, count=2)
    view = states.plane_of_spread("gaussian", np.stack([own.z for own in recorded.rollouts]))
    view = view if words == GAUSSIAN else states.ZView("none", None, "")
    data = rollouts.rollout_data(recorded, view, task_of(env), recorded.state_variance)
    shown = data["rollouts"][1]["series"]
    if words == SAC:
        assert set(shown) == {"reward"}
        return
    horizon = actor.agent.config.horizon
    raw = recorded.rollouts[1].errors[f"model error, {horizon} steps"]
    spread = np.concatenate([own.states for own in recorded.rollouts]).var(0).mean()
    assert shown[f"model error, {horizon} steps"] == pytest.approx(raw / spread, rel=1e-2)
    assert len(shown["model error, 1 step"]) == len(shown["reward"]) == len(raw) + horizon - 1


def test_slots_are_shown_for_each_picture() -> None:
    actor, env = load(trained(*SLOTS))
    recorded = rollouts.record(actor, env, seed=0, count=1)
    (rollout,) = recorded.rollouts
    assert len(rollout.reel.slots) == len(rollout.reel.pictures) > 1
    assert len({*rollout.reel.slots}) > 1
    count = actor.agent.model.perception.unwrapped.model.config.slots
    tiles = cv2.imdecode(np.frombuffer(rollout.reel.slots[0], np.uint8), cv2.IMREAD_COLOR)
    assert tiles.shape == (64, (2 + count) * 64, 3)
    told = rollouts.failures(recorded.rollouts)
    assert told is not None and len(told["colours"]) == count
    assert told["frames"] == len(rollout.reel.rewards) + 1
    assert all(case["picture"].startswith("data:image/webp") for case in told["cases"])
    actor, env = load(trained(*GAUSSIAN))
    assert rollouts.failures(rollouts.record(actor, env, seed=0, count=1).rollouts) is None


def test_the_worst_frames_are_found_by_each_measure_and_those_alike_once() -> None:
    def step(**given: Any) -> dict[str, np.ndarray]:
        found = {"presence": np.ones((1, 2)), "overlap": np.zeros((1, 2, 2))}
        found |= {"jump": np.zeros((1, 2)), "error": np.full((1, 2), 0.01)}
        for name, (where, value) in given.items():
            found[name][(0, *where)] = value
        return found

    good = [step() for _ in range(20)]
    short, long = [step() for _ in range(8)], [*good]
    short[3] = step(presence=((1,), 0.1))
    short[4] = step(presence=((1,), 0.4), jump=((0,), 0.2))
    long[3] = step(jump=((0,), 0.3))
    long[15] = step(overlap=((0, 1), 0.7), error=((0,), 0.5))
    cases = find_failures([good, short, long])
    at = [(case["rollout"], case["step"], case["slots"]) for case in cases]
    assert at[:3] == [(1, 3, [1]), (2, 15, [0, 1]), (2, 3, [0])]
    assert at[3] == (2, 15, [0]) and len(at) == 6
    assert cases[0]["why"].startswith("slot 1 is lost or hidden: presence 0.10, 1.00")
    assert "30.0% of the frame's side" in cases[2]["why"]
    assert "error of 0.500, 0.010 in the median" in cases[3]["why"]


def test_pictures_are_dropped_until_they_fit_but_for_the_ends() -> None:
    reels = [
        rollouts.Reel(
            steps=list(range(n)), pictures=[b"%03d" % k for k in range(n)], slots=[b"s"] * n
        )
        for n in (40, 61)
    ]
    rollouts.thin(reels, most=200)
    assert sum(len(x) for reel in reels for x in (*reel.pictures, *reel.slots)) <= 200
    for reel, n in zip(reels, (40, 61), strict=True):
        assert reel.steps[0] == 0 and reel.steps[-1] == n - 1
        assert [int(x) for x in reel.pictures] == reel.steps
        assert len(reel.slots) == len(reel.steps)


def test_pictures_that_do_not_fit_keep_their_first_and_last() -> None:
    reels = [rollouts.Reel(steps=[0, 1, 2], pictures=[b"1", b"2", b"3"]), rollouts.Reel()]
    rollouts.thin(reels, most=1)
    assert reels[0].pictures == [b"1", b"3"]


# The page -----------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bokeh")
    run, out = trained(*SLOTS), tmp_path / "new" / "report.html"
    assert run_script(monkeypatch, "explore", f"run={run}", f"out={out}") == 0
    assert str(out) in capsys.readouterr().out
    assert out.stat().st_size < page.MOST_BYTES
    html = out.read_text()
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)", html) == [
        "data:,"
    ]
    data = data_of(out)
    coverage = [line["coverage"] for line in lines(run)]
    assert data["curves"]["coverage"]["seeds"][0]["y"] == pytest.approx(coverage, rel=1e-4)
    assert len(data["rollouts"]["rollouts"]) == 2
    assert data["header"]["seeds"][0][1] == 150
    assert len(data["figures"]) == 3
    assert "RND" in data["map"]["no_bonus"]


def test_several_seeds_share_a_page_with_the_rollouts_of_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("bokeh")
    run, out = trained(*EPISODES), tmp_path / "report.html"
    assert run_script(monkeypatch, "explore", f"run={run}", f"out={out}") == 0
    data = data_of(out)
    assert [own["seed"] for own in data["map"]["seeds"]] == [0, 1]
    assert data["header"]["different"] == []
    assert "the seed of median success" in data["rollouts"]["note"]
    assert [own["began"] for own in data["rollouts"]["rollouts"]] == [None] * 2 + [0] * 5
    assert [len(own["bonus"]) for own in data["map"]["seeds"]] == [300, 300]


def test_a_published_agent_shows_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bokeh")
    name, out = "zoo:block_push2-state", tmp_path / "report.html"
    assert run_script(monkeypatch, "explore", f"run={name}", f"out={out}") == 0
    data, card = data_of(out), json.loads((locate(name) / "card.json").read_text())
    assert len(data["curves"]["success"]["seeds"]) == len(card["seeds"])
    assert "no record of visited states" in data["map"]["missing"]
    assert "no record of visited states" in capsys.readouterr().err
    assert "no recorded episodes" in data["rollouts"]["note"]
    assert set(data["rollouts"]["rollouts"][0]["series"]) == {"reward"}


def test_a_run_whose_checkpoint_is_broken_still_shows_its_curves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("bokeh")
    run = shutil.copytree(trained(*GAUSSIAN), tmp_path / "run")
    for state in (run / "checkpoints").glob("*/state.json"):
        state.write_text("{")
    assert run_script(monkeypatch, "explore", f"run={run}") == 0
    data = data_of(run / "report.html")
    assert data["curves"] and len(data["figures"]) == 1
    assert "broken checkpoint" in data["map"]["missing"]
    assert "broken checkpoint" in data["rollouts"]["missing"]


def test_no_text_of_a_run_ends_the_pages_script() -> None:
    name = "</script><b>{{bokeh}}<!--<script>"
    html = page.fill({"name": name}, "BOKEH").decode()
    assert html.count("</script>") == 3 and html.count("BOKEH") == 1
    found = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None and json.loads(found[1]) == {"name": name} and "<" not in found[1]


def test_what_is_no_run_and_a_missing_bokeh_are_one_line_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bokeh")
    monkeypatch.delitem(sys.modules, "vis_rpg.analysis.explorer.figures", raising=False)
    monkeypatch.delattr("vis_rpg.analysis.explorer.figures", raising=False)
    monkeypatch.setitem(sys.modules, "bokeh.embed", None)
    assert run_script(monkeypatch, "explore", f"run={tmp_path}") == 2
    assert "pip install 'vis-rpg[explore]'" in capsys.readouterr().err
    monkeypatch.undo()
    assert run_script(monkeypatch, "explore", f"run={tmp_path}") == 2
    error = capsys.readouterr().err
    assert "not a run" in error and len(error.splitlines()) == 1
