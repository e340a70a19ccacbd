"""Replay: every segment drawn is one that happened, compared with a plain record of
what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from perception.base import StorageSpec
from perception.slots.model import SlotConfig, SlotModel
from perception.slots.perception import SlotPerception
from tests.small import config, sample
from vis_rpg.agent.batch import Batch
from vis_rpg.errors import UserError
from vis_rpg.training import checkpoint
from vis_rpg.training.chunks import Chunks
from vis_rpg.training.replay_buffer import (
    BatchSpec,
    ReplayBuffer,
    Storage,
    bytes_needed,
    choose_device,
    make_storage,
)
from vis_rpg.training.trainer import Trainer

CPU = torch.device("cpu")
ID = {"id": StorageSpec((), torch.int64)}


@dataclass
class Episode:
    obs: list[int] = field(default_factory=list)
    acts: list[tuple[float, float, float, float]] = field(default_factory=list)
    """(action, reward, terminated, z) of each step."""


class World:
    """Fills a replay with episodes of random length, and remembers all in plain lists. Every
    observation is a number of its own."""

    def __init__(
        self,
        envs: int = 3,
        capacity: int = 100_000,
        history: int = 1,
        longest: int = 9,
        seed: int = 0,
        storage: Storage | None = None,
        lost: float = 0.0,
        mean_reward: float = 0.0,
    ) -> None:
        """lost: chance that an environment is lost in a step: its episode is cut, and what it did
        there is never known."""
        self.lost, self.mean_reward = lost, mean_reward
        self.rng = np.random.default_rng(seed)
        self.longest, self.envs = longest, envs
        self.replay = ReplayBuffer(capacity, ID, 1, 1, history, envs, CPU, storage)
        self.episodes = [Episode() for _ in range(envs)]
        self.where: dict[int, tuple[Episode, int]] = {}
        """Observation -> its episode and place there."""
        self.order: list[int] = []
        """Observations in the order of arrival, which is that of rows."""
        self.begin(list(range(envs)))

    def see(self, episode: Episode) -> int:
        name = len(self.order)
        self.where[name] = (episode, len(episode.obs))
        episode.obs.append(name)
        self.order.append(name)
        return name

    def begin(self, rows: list[int]) -> None:
        for row in rows:
            self.episodes[row] = Episode()
        obs = torch.tensor([self.see(self.episodes[row]) for row in rows])
        self.replay.begin({"id": obs}, torch.tensor(rows))

    def step(self) -> None:
        ends = self.rng.random(self.envs) < 1 / self.longest
        action, reward, z = self.rng.normal(size=(3, self.envs)).astype(np.float32)
        reward += self.mean_reward
        terminated = ends & (self.rng.random(self.envs) < 0.5)
        kept = np.flatnonzero(self.rng.random(self.envs) >= self.lost)
        for row in kept:
            episode = self.episodes[row]
            z[row] = episode.acts[0][3] if episode.acts else z[row]
            episode.acts.append((action[row], reward[row], float(terminated[row]), z[row]))
        following = torch.tensor([self.see(self.episodes[row]) for row in kept], dtype=torch.int64)
        given = [
            torch.from_numpy(value[kept])
            for value in (action[:, None], reward, terminated, z[:, None])
        ]
        which = torch.from_numpy(kept) if self.lost else None
        self.replay.add(*given, {"id": following}, which)
        begun = np.union1d(np.flatnonzero(ends), np.setdiff1d(np.arange(self.envs), kept))
        if len(begun):
            self.begin(begun.tolist())

    def run(self, steps: int) -> World:
        for _ in range(steps):
            self.step()
        return self

    def check(self, batch: Batch) -> set[int]:
        """Every column of the batch happened so; returns the observations that segments
        start at."""
        history, (H, B) = self.replay.history, batch.reward.shape
        window, mask, z = (
            batch.obs_sequence["id"].T.tolist(),
            batch.mask.T.tolist(),
            batch.z[:, 0].tolist(),
        )
        given = (
            torch.stack([batch.action[..., 0], batch.reward, batch.terminated], -1)
            .transpose(0, 1)
            .tolist()
        )
        starts = set()
        for b in range(B):
            episode, t = self.where[window[b][history - 1]]
            starts.add(window[b][history - 1])
            last, acts = len(episode.obs) - 1, episode.acts[t : t + H]
            assert window[b] == [
                episode.obs[min(max(i, 0), last)] for i in range(t - history + 1, t + H + 1)
            ]
            assert acts
            assert mask[b] == [1.0] * len(acts) + [0.0] * (H - len(acts))
            assert given[b] == [[float(x) for x in act[:3]] for act in acts] + [[0.0] * 3] * (
                H - len(acts)
            )
            assert all(float(act[3]) == z[b] for act in acts)
            assert bool(batch.paid[b]) == any(act[1] > 0 for act in episode.acts[t:])
        for b in range(batch.rnd_obs["id"].shape[1]):
            ids = batch.rnd_obs["id"][:, b].tolist()
            episode, t = self.where[ids[-1]]
            assert t > 0, "the RND learns from observations that followed an action"
            assert ids == [episode.obs[max(i, 0)] for i in range(t - history + 1, t + 1)]
        if batch.first is not None:
            for ids in batch.first["id"].T.tolist():
                assert ids == [ids[-1]] * history
                assert self.where[ids[-1]][1] == 0
        return starts

    def draw(
        self, size: int = 256, horizon: int = 3, seed: int = 0, leading: int | None = None
    ) -> Batch:
        """By default a quarter led up to reward."""
        first = 16 if self.replay.numbers["firsts"] else 0
        spec = BatchSpec(
            size, horizon, 16, first, leading=size // 4 if leading is None else leading
        )
        return sample(self.replay, spec, torch.Generator().manual_seed(seed))


def same(first: Batch, second: Batch) -> bool:
    def flat(batch: Batch) -> list[Tensor]:
        parts: list[Tensor] = []
        for value in vars(batch).values():
            parts += list(value.values()) if isinstance(value, dict) else [value]
        return [part for part in parts if part is not None]

    return all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 3, 12])
def test_segments_are_what_happened_and_never_cross_episodes(history: int, horizon: int) -> None:
    world = World(history=history).run(60)
    starts = world.check(world.draw(1200, horizon))
    acted = {name for name, (episode, t) in world.where.items() if t < len(episode.acts)}
    assert starts == acted, "every transition can be drawn, the newest included"


@pytest.mark.parametrize("capacity", [100_000, 40])
@pytest.mark.parametrize("lost", [0.1, 0.7])
def test_an_episode_that_is_cut_ends_where_it_was_last_seen(capacity: int, lost: float) -> None:
    world = World(capacity=capacity, history=2, lost=lost)
    for _ in range(20):
        world.check(world.run(4).draw(60))
    starts = world.check(world.draw(4000))
    acted = {name for name in world.order if world.where[name][1] < len(world.where[name][0].acts)}
    oldest = len(world.order) - capacity + world.replay.margin
    assert starts == {name for name in acted if name >= oldest}


@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("envs", [1, 3, 5])
@pytest.mark.parametrize("seed", range(2))
def test_overwriting_leaves_valid_segments_alone(history: int, envs: int, seed: int) -> None:
    capacity = 8 * envs + 8 + 30 * seed
    longest, mean_reward = (2, 0.0) if seed == 0 else (20, -1.5)  # so that reward may come late
    world = World(envs, capacity, history, longest, seed, mean_reward=mean_reward)
    for step in range(30):
        world.run(3)
        starts = world.check(world.draw(24, seed=step))
        assert all(name >= len(world.order) - capacity for name in starts)
    oldest = len(world.order) - capacity + world.replay.margin
    held = {
        name
        for name in world.order[oldest:]
        if world.where[name][1] < len(world.where[name][0].acts)
    }
    assert len(world.replay) == len(held)
    assert world.check(world.draw(20 * len(held))) == held


def test_starts_are_drawn_uniformly() -> None:
    world = World(envs=3, capacity=150).run(120)
    batch = world.draw(60_000, horizon=1, leading=0)
    counts = torch.bincount(batch.obs_sequence["id"][0])
    counts = counts[counts > 0].double()
    assert len(counts) == len(world.replay)
    expected = counts.mean()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < len(counts) + 5 * (2 * len(counts)) ** 0.5


def test_half_of_a_batch_is_of_the_newest_transitions_where_wanted() -> None:
    world = World(envs=1, longest=10**9).run(400)  # transition t starts at observation t
    spec = BatchSpec(4000, 1, 2000, 0, recent=100)
    batch = sample(world.replay, spec, torch.Generator().manual_seed(0))
    starts, rnd_obs = batch.obs_sequence["id"][0], batch.rnd_obs["id"][-1] - 1
    for drawn in (starts, rnd_obs):
        half = len(drawn) // 2
        newest, rest = drawn[:half], drawn[half:]
        assert newest.min() == 300 and newest.max() == 399 == rest.max() and rest.min() == 0
        assert abs(newest.double().mean() - 349.5) < 3 and abs(rest.double().mean() - 199.5) < 12
    young = World(envs=1, longest=10**9).run(50)
    drawn = sample(young.replay, spec, torch.Generator().manual_seed(0)).obs_sequence["id"][0]
    assert set(drawn[:2000].tolist()) == set(range(50))


@pytest.mark.parametrize("capacity", [100_000, 150])
def test_a_share_of_a_batch_led_up_to_reward_where_wanted(capacity: int) -> None:
    """Each step without reward before one with is as likely as the others, and it is any step while
    there is none. What is overwritten is made up for by any others."""
    world = World(envs=3, capacity=capacity, mean_reward=-1.5).run(200)
    leading = set()
    for name in world.order[max(0, len(world.order) - capacity + world.replay.margin) :]:
        episode, t = world.where[name]
        rewards = [act[1] for act in episode.acts[t:]]
        if rewards and rewards[0] <= 0 < max(rewards):
            leading.add(name)
    starts = world.draw(40_000, horizon=1, leading=20_000).obs_sequence["id"][0].tolist()
    others, drawn = starts[:20_000], [name for name in starts[20_000:] if name in leading]
    assert len(drawn) == 20_000 if capacity > 1000 else 15_000 < len(drawn) <= 20_000
    assert 0.1 < sum(name in leading for name in others) / 20_000 < 0.4
    assert set(drawn) == leading
    counts = torch.bincount(torch.tensor(drawn))
    counts = counts[counts > 0].double()
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert chi_square < len(counts) + 5 * (2 * len(counts)) ** 0.5
    unpaid = ReplayBuffer(100, ID, 1, 1, 1, 1, CPU)
    unpaid.begin({"id": torch.tensor([0])}, torch.tensor([0]))
    for name in range(1, 10):
        zero = torch.zeros(1)
        unpaid.add(zero[:, None], zero, zero, zero[:, None], {"id": torch.tensor([name])})
    starts = sample(unpaid, BatchSpec(400, 1, 1, leading=200), torch.Generator()).obs_sequence
    assert set(starts["id"][0][200:].tolist()) == set(range(9))


def test_what_is_left_of_an_episode_longer_than_replay_led_up_to_its_reward() -> None:
    world = World(envs=2, capacity=64, longest=10**9, mean_reward=-10.0).run(150)
    world.mean_reward = 10.0
    starts = world.run(1).draw(4000, horizon=1, leading=2000).obs_sequence["id"][0][2000:]
    oldest = len(world.order) - 64 + world.replay.margin
    assert set(starts.tolist()) == set(range(oldest, len(world.order) - 4))
    world.check(world.run(70).draw(400))
    _, _, _, _, first, end, _ = world.replay.storage.bounds.tolist()
    assert end - first <= 64


def test_the_final_observation_is_the_one_bootstrapped_from() -> None:
    world = World(longest=4).run(40)
    batch = world.draw(2000, horizon=1)
    for start, following in batch.obs_sequence["id"].T.tolist():
        episode, t = world.where[start]
        assert following == episode.obs[t + 1]


@pytest.mark.parametrize("capacity", [100_000, 90, 160])
def test_a_saved_replay_draws_the_same_segments_and_goes_on_the_same(
    tmp_path: Path, capacity: int
) -> None:
    world, chunks = (
        World(envs=3, capacity=capacity, history=2),
        Chunks(tmp_path / "chunks", "replay"),
    )
    for part in range(5):
        world.run(17 if part else 3)
        saved = world.replay.save(chunks)
        path = checkpoint.save(tmp_path / "checkpoints", part, {"replay": saved})
        chunks.keep({(start, end) for start, end in saved["spans"]})
        loaded = ReplayBuffer(capacity, ID, 1, 1, 2, 3, CPU)
        loaded.load(checkpoint.load(path)["replay"], Chunks(tmp_path / "chunks", "replay"))
        assert len(loaded) == len(world.replay)
        generator = torch.Generator().manual_seed(part)
        spec = BatchSpec(64, 3, 16, 16, leading=16)
        assert same(sample(loaded, spec, generator), world.draw(64, seed=part))
        world.replay = loaded  # and on from what was loaded
        chunks = Chunks(tmp_path / "chunks", "replay")
        chunks.load_state(saved)
    world.run(30)
    world.check(world.draw(500))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    quiet, saving = World(capacity=120), World(capacity=120)
    chunks = Chunks(tmp_path, "replay")
    for step in range(100):
        quiet.step()
        saving.step()
        if step % 7 == 0:
            saving.replay.save(chunks)
        assert same(quiet.draw(8, seed=step), saving.draw(8, seed=step))


def test_a_checkpoint_costs_what_is_new(tmp_path: Path) -> None:
    world, chunks = World().run(50), Chunks(tmp_path, "replay")
    world.replay.save(chunks)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    world.run(4)
    saved = world.replay.save(chunks)
    new = [path for path in tmp_path.iterdir() if path not in before]
    assert len(new) == 1
    rows = chunks.read(tuple(saved["spans"][-1]))["has_action"]
    assert len(rows) <= 4 * 2 * world.envs + world.envs
    assert len(saved["tail"]["has_action"]) <= 2 * world.envs
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_an_episode_that_is_dropped_ends_masked_and_the_next_begins_clean(tmp_path: Path) -> None:
    world, chunks = World(envs=2, history=2, longest=1000).run(5), Chunks(tmp_path, "replay")
    state = world.replay.save(chunks)
    world.replay = ReplayBuffer(100_000, ID, 1, 1, 2, 2, CPU)
    world.replay.load(state, chunks)
    world.begin([0, 1])
    world.run(5)
    world.check(world.draw(300))
    world.replay.save(chunks)
    assert list(world.replay.numbers["firsts"]) == [0, 1, 12, 13]


def test_z_stays_that_of_the_start_within_a_segment() -> None:
    world = World(envs=2, longest=3).run(40)
    batch = world.draw(500, horizon=5)
    for b, start in enumerate(batch.obs_sequence["id"][0].tolist()):
        assert float(batch.z[b, 0]) == pytest.approx(world.where[start][0].acts[0][3])


def test_the_memory_that_is_told_is_the_memory_that_is_taken() -> None:
    stored = {
        "frame": StorageSpec((8, 8, 3), torch.uint8),
        "slots": StorageSpec((4, 6), torch.float16),
    }
    replay = ReplayBuffer(500, stored, 2, 12, 2, 5, CPU)
    storage = replay.storage
    others = storage.paid, storage.starts, storage.firsts, storage.leading, storage.bounds
    taken = sum(column.nbytes for column in (*storage.columns().values(), *others))
    assert bytes_needed(500, stored, 2, 12) == pytest.approx(taken, rel=0.01)


@pytest.mark.parametrize("slots", [4, 7])
def test_a_million_observations_by_slots_fit_into_a_gigabyte(slots: int, tmp_path: Path) -> None:
    SlotModel(SlotConfig(slots=slots)).save(tmp_path / "model.safetensors", {})
    storage = SlotPerception(tmp_path / "model.safetensors").storage
    assert bytes_needed(10**6, storage, 28, 12) <= 1e9  # Adroit's hand; z of Table 1


@pytest.fixture
def four_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 4 GiB free and a GPU with 10 GiB free."""
    monkeypatch.setattr("vis_rpg.training.replay_buffer.free_on_host", lambda: 4 * 2**30)
    monkeypatch.setattr("vis_rpg.training.replay_buffer.free_addresses", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 16 * 2**30))


def test_the_line_says_how_much_replay_takes_of_what_is_free(four_gib: None) -> None:
    chosen, line = choose_device(3 * 2**29, CPU, "auto", 1000)
    assert chosen == CPU
    assert line == "1.50 GiB when full on cpu, 4.0 GiB free there"


@pytest.mark.parametrize(
    ("needed", "wanted", "chosen", "free"),
    [
        (7, "auto", "cuda", "10.0"),
        (3, "host", "cpu", "4.0"),
        (9, "device", "cuda", "10.0"),
        (1, "host", "cpu", "4.0"),
    ],
)
def test_replay_lies_on_the_gpu_where_it_leaves_a_fifth_of_it_free(
    four_gib: None, needed: int, wanted: str, chosen: str, free: str
) -> None:
    where, line = choose_device(needed * 2**30, torch.device("cuda"), wanted, 1000)
    assert where.type == chosen
    assert line == f"{needed}.00 GiB when full on {chosen}, {free} GiB free there"


@pytest.mark.parametrize(
    ("device", "wanted", "says"),
    [
        (
            "cpu",
            "auto",
            r"12.00 GiB on cpu, with 4.00 GiB free there: give agent.replay_capacity=30000 or less",
        ),
        (
            "cuda",
            "auto",
            r"12.00 GiB on cpu, with 4.00 GiB free there: give agent.replay_capacity=66000 or less",
        ),
        (
            "cuda",
            "device",
            r"12.00 GiB on cuda, with 10.00 GiB free there: give agent.replay_capacity=75000 "
            r"or less",
        ),
    ],
)
def test_replay_that_does_not_fit_is_refused_with_the_capacity_that_would(
    four_gib: None, device: str, wanted: str, says: str
) -> None:
    with pytest.raises(
        UserError, match=f"agent.replay_capacity=100000: replay x 2 seeds would take {says}"
    ):
        choose_device(12 * 2**30, torch.device(device), wanted, 100_000, what="replay x 2 seeds")
    capacity = int(says.split("capacity=")[1].split()[0])
    assert (
        choose_device(12 * 2**30 * capacity // 100_000, torch.device(device), wanted, capacity)[
            0
        ].type
        == device
    )


def test_replay_that_a_run_is_too_short_to_fill_may_be_larger_than_memory_but_not_than_addresses(
    four_gib: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_device(12 * 2**30, CPU, "auto", 100_000, filled=0.2)
    monkeypatch.setattr("vis_rpg.training.replay_buffer.free_addresses", lambda: 6 * 2**30)
    with pytest.raises(
        UserError,
        match="with 6.00 GiB left under `ulimit -v`: give agent.replay_capacity=45000 or less",
    ):
        choose_device(12 * 2**30, CPU, "auto", 100_000, filled=0.2)


def test_a_run_is_refused_only_if_it_is_long_enough_to_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vis_rpg.training.replay_buffer.free_on_host", lambda: 2**26)
    words = ("task=maze", "agent.replay_capacity=1000000", f"out={tmp_path}")
    with pytest.raises(
        UserError,
        match=(
            r"agent.replay_capacity=1000000: replay would take .* on cpu, with 0.06 GiB "
            r"free there"
        ),
    ):
        Trainer(config(*words, "steps=1000000"))
    assert not (tmp_path / "metrics.jsonl").exists()
    Trainer(config(*words, "steps=1000"))


def test_replays_side_by_side_know_nothing_of_each_other() -> None:
    worlds = [
        World(envs=2, capacity=60, history=2, longest=3 + seed, seed=seed) for seed in range(3)
    ]
    together = make_storage(60, ID, 1, 1, CPU, count=3)
    for index, world in enumerate(worlds):
        beside = World(
            envs=2,
            capacity=60,
            history=2,
            longest=3 + index,
            seed=index,
            storage=together.row(index),
        )
        for world_or_twin in (world, beside):
            world_or_twin.run(70)
        beside.check(beside.draw(200))
    for index, world in enumerate(worlds):
        for name, column in world.replay.storage.columns().items():
            assert torch.equal(together.columns()[name][index], column), name
        for name in ("starts", "firsts", "leading", "bounds"):
            own = getattr(world.replay.storage, name)
            assert torch.equal(getattr(together, name)[index], own), name


def test_observations_keep_their_type() -> None:
    spec = {"frame": StorageSpec((2, 2), torch.uint8), "slots": StorageSpec((3,), torch.float16)}
    replay = ReplayBuffer(100, spec, 1, 0, 1, 1, CPU)
    obs = {"frame": torch.full((1, 2, 2), 200, dtype=torch.uint8), "slots": torch.ones(1, 3).half()}
    replay.begin(obs, torch.tensor([0]))
    replay.add(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1), torch.zeros(1, 0), obs)
    window = sample(replay, BatchSpec(4, 1, 1), torch.Generator()).obs_sequence
    assert (window["frame"].dtype, window["slots"].dtype) == (torch.uint8, torch.float16)
    assert int(window["frame"].max()) == 200


def test_a_replay_that_is_too_small_is_refused_with_the_key_to_change() -> None:
    with pytest.raises(
        UserError, match=r"agent.replay_capacity=20: too small for agent.envs=5; give at least 48"
    ):
        ReplayBuffer(20, ID, 1, 1, 1, 5, CPU)
    ReplayBuffer(48, ID, 1, 1, 1, 5, CPU)


def test_episodes_longer_than_replay_are_named_where_beginnings_are_asked_for() -> None:
    world = World(envs=1, capacity=40, longest=10**9).run(100)
    with pytest.raises(UserError, match="agent.replay_capacity=40: holds no episode's beginning"):
        sample(world.replay, BatchSpec(4, 3, 4, 4), torch.Generator())


def test_a_run_whose_full_replay_may_hold_no_beginning_is_refused_at_its_start(
    tmp_path: Path,
) -> None:
    words = ("task=gym", "task.id=Pendulum-v1", "agent.envs=2")
    words += "steps=5000", "agent.replay_capacity=400"
    for more in ("steps=150", "agent.latent.prior=fixed", "agent.replay_capacity=416"):
        Trainer(config(*words, more, f"out={tmp_path / more}"))
    with pytest.raises(UserError, match="agent.replay_capacity=400: .* give at least 4[0-9]+"):
        Trainer(config(*words, f"out={tmp_path / 'refused'}"))
