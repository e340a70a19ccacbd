"""A memory reads an episode in learning as it did in acting."""

from __future__ import annotations

import pytest
import torch

from perception.base import ObsSequence, RecurrentState
from perception.encoders.memory import BURN_IN, MemoryPerception
from tests.small import Seen, batch, learner, noise_of
from tests.small import agent as make_agent

ONE_OR_TWO = pytest.mark.parametrize("shape", [(5,), (2, 3, 4)], ids=["one", "two"])


def memory_of(shape: tuple[int, ...] = (5,), width: int = 6) -> MemoryPerception:
    torch.manual_seed(0)
    return MemoryPerception(Seen(shape), width)


def act(of: MemoryPerception, obs: torch.Tensor) -> tuple[torch.Tensor, ObsSequence]:
    """Features of an episode's observations (T, B, ...) in acting, and what replay stores."""
    state, features, columns = RecurrentState(), [], []
    for step, each in enumerate(obs):
        first = torch.full((len(each),), step == 0)
        seen, stored, state = of.encode(each, torch.zeros(len(each), 2), first, state)
        features.append(seen)
        columns.append(stored)
    return torch.stack(features), {k: torch.stack([c[k] for c in columns]) for k in columns[0]}


def from_replay(stored: ObsSequence, begin: int, end: int, history: int) -> ObsSequence:
    """Rows begin to end and the history before; an episode's first row repeats."""
    rows = [max(0, row) for row in range(begin - history + 1, end)]
    return {name: value[rows] for name, value in stored.items()}


@ONE_OR_TWO
@pytest.mark.parametrize("begin", [0, 1, 3, 20])
def test_features_from_replay_are_those_of_acting(shape: tuple[int, ...], begin: int) -> None:
    of = memory_of(shape)
    of.to_storage(torch.zeros(2, 5), torch.zeros(2, 2), torch.ones(2, dtype=torch.bool), {})
    obs = torch.randn(25, 2, *of.inner.storage["x"].shape)
    acted, stored = act(of, obs)
    read = of.features(from_replay(stored, begin, begin + 4, of.history))
    assert read.shape == (4, 2, *of.feature_shape)
    torch.testing.assert_close(read, acted[begin : begin + 4])


def test_an_episode_knows_nothing_of_the_one_before() -> None:
    of, obs = memory_of(), torch.randn(3, 1, 5)
    _, _, state = of.encode(obs[0], torch.zeros(1, 2), torch.tensor([True]), RecurrentState())
    again, stored, _ = of.encode(obs[1], torch.zeros(1, 2), torch.tensor([True]), state)
    alone, _, _ = of.encode(obs[1], torch.zeros(1, 2), torch.tensor([True]), RecurrentState())
    assert torch.equal(again, alone)
    assert not stored["memory"].any()


def test_learning_reaches_as_far_back_as_the_burn_in_and_stops_at_the_episode() -> None:
    of = memory_of()
    _, stored = act(of, torch.randn(30, 1, 5))
    for begin, reached in ((20, BURN_IN), (2, 2)):
        sequence = from_replay(stored, begin, begin + 1, of.history)
        sequence["x"] = sequence["x"].clone().requires_grad_()
        of.features(sequence)[0].sum().backward()
        rows = sequence["x"].grad.abs().sum((1, 2)) > 0
        assert int(rows.sum()) == reached + 1
        assert bool(rows[-1])


def test_the_bonus_reads_what_it_read_without_a_memory() -> None:
    for shape in ((5,), (2, 3, 4)):
        of = memory_of(shape)
        sequence = {
            "x": torch.randn(of.history + 2, 2, *of.inner.storage["x"].shape),
            "memory": torch.zeros(of.history + 2, 2, 6),
        }
        short = {"x": sequence["x"][BURN_IN:]}
        assert torch.equal(of.rnd_input(sequence), of.inner.rnd_input(short))


def test_an_update_changes_the_memory() -> None:
    of = make_agent(perception=memory_of())
    before = of.model.perception.cell.input.weight.clone()
    data = batch(of)
    for sequence in (data.obs_sequence, data.rnd_obs):
        sequence["memory"] = torch.randn(*sequence["x"].shape[:2], 6)
    learner(of).update(data, noise_of(of, data)())
    assert not torch.equal(before, of.model.perception.cell.input.weight)
