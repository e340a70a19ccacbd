"""Updates out of replay: each agent's own batches and noise, one ahead where replay lies on the
host, and nothing that is waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.small import Seen, agent, changed, sample, weights
from vis_rpg.agent.batch import Batch
from vis_rpg.agent.rpg import Agent
from vis_rpg.benchmarks.op_counter import OperatorCounter
from vis_rpg.training.learner import Learner
from vis_rpg.training.replay_buffer import BatchSpec, ReplayBuffer, make_storage
from vis_rpg.training.sampler import BatchSampler, PinnedPrefetcher, stack

CPU = torch.device("cpu")
ENVS, CAPACITY = 2, 60
LEARNED = "agent.latent.prior=learned"
SLOTS = (2, 3, 4)


def fill(replay: ReplayBuffer, of: Agent, steps: int, seed: int) -> None:
    """Random steps, with an end to every episode now and then."""
    generator = torch.Generator().manual_seed(seed)

    def seen(rows: int) -> dict[str, Tensor]:
        return {
            "x": torch.randn(rows, *of.model.perception.storage["x"].shape, generator=generator)
        }

    for step in range(steps):
        if step % (5 + seed) == 0:
            replay.begin(seen(ENVS), torch.arange(ENVS))
        action, z = (
            torch.randn(ENVS, of.action_dim, generator=generator).tanh(),
            of.space.sample(of.space.noise((ENVS,), generator)),
        )
        replay.add(action, torch.randn(ENVS, generator=generator), torch.zeros(ENVS), z, seen(ENVS))


def sampling_learner(*of: Agent, steps: int = 20, prefetch: bool = False) -> Learner:
    """Agents with a replay, noise and draws of their own."""
    first = of[0]
    sizes = (CAPACITY, first.storage, first.action_dim, first.space.dim)
    several = len(of) > 1
    storage = make_storage(*sizes, CPU, len(of) if several else None)
    buffers = []
    for row, own in enumerate(of):
        history, part = first.model.perception.history, storage.row(row) if several else storage
        buffer = ReplayBuffer(*sizes, history, ENVS, CPU, part)
        fill(buffer, own, steps + row, seed=row)
        buffers.append(buffer)
    spec = BatchSpec(6, first.config.horizon, 8, 4 if first.pi_z.net is not None else 0)
    noise, draws = (
        [torch.Generator().manual_seed(seed + row) for row in range(len(of))] for seed in (100, 200)
    )
    sampler = BatchSampler(buffers, storage, spec, draws, CPU)
    if prefetch:
        sampler.prefetcher = PinnedPrefetcher(CPU)
    return Learner(of, sampler=sampler, noise_generators=noise)


def agents(count: int, *words: str, shape: tuple[int, ...] = (5,)) -> list[Agent]:
    return [agent(*words, perception=Seen(shape), seed=seed) for seed in range(count)]


def same(first: Any, second: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "words", [(), (LEARNED, "agent.latent.kind=categorical")], ids=["fixed", "learned"]
)
@pytest.mark.parametrize("count", [1, 3])
def test_each_agent_learns_from_its_own_replay_by_its_own_noise_and_metrics_are_summed_up(
    count: int, words: tuple[str, ...]
) -> None:
    of, reference = agents(count, *words), agents(count, *words)
    step, by_hand = sampling_learner(*of), sampling_learner(*reference)
    sampler = by_hand.sampler
    expected: dict[str, list[Tensor]] = {}
    for _ in range(3):
        step.step()
        batches = [
            sample(buffer, sampler.spec, generator)
            for buffer, generator in zip(sampler.buffers, sampler.generators, strict=True)
        ]
        noises = [
            own.draw_noise(6, sampler.spec.first, generator)
            for own, generator in zip(reference, by_hand.noise_generators, strict=True)
        ]
        for name, value in by_hand.update(stack(batches), stack(noises)).items():
            expected.setdefault(name, []).append(value.clone())
    for own, alone in zip(of, reference, strict=True):
        assert changed(weights(own), alone) == set()
    assert step.updates == 3
    assert step.counts == {name: len(values) for name, values in expected.items()}
    assert (step.counts["model_grad_norm"], step.counts["policy_grad_norm"]) == (3, 2), (
        "the policy moves every second time"
    )
    torch.testing.assert_close(
        step.sums, {name: torch.stack(values).sum(0) for name, values in expected.items()}
    )
    step.clear_metrics()
    assert step.counts == {}
    assert not any(value.any() for value in step.sums.values())
    step.step()
    assert step.counts["model_grad_norm"] == 1


@pytest.mark.parametrize("shape", [(5,), SLOTS], ids=["vectors", "slots of two frames"])
@pytest.mark.parametrize("steps", [1, 20, 100], ids=["begun", "part full", "overwritten"])
def test_batches_of_several_replays_are_what_each_draws_alone(
    shape: tuple[int, ...], steps: int
) -> None:
    together = sampling_learner(*agents(3, LEARNED, shape=shape), steps=steps).sampler
    alone = [torch.Generator().manual_seed(200 + row) for row in range(3)]
    for _ in range(3):
        drawn = together.draw()
        assert same(
            drawn,
            stack(
                [
                    sample(buffer, together.spec, own)
                    for buffer, own in zip(together.buffers, alone, strict=True)
                ]
            ),
        )


# A replay on the host -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_from_a_replay_on_the_host_exactly_the_batches_drawn_are_learned_one_ahead(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = sampling_learner(*agents(count, LEARNED), prefetch=True)
    sampler = staged.sampler
    drawn: list[Batch] = []
    learned: list[Batch] = []
    places = set()
    draw, update_step = sampler.draw, staged.update_step

    def drawing() -> Batch:
        drawn.append(draw())
        return drawn[-1]

    def learning_from(batch: Batch, *others: Any) -> Any:
        assert len(drawn) == len(learned) + 1, "the next one is drawn once this one is under way"
        learned.append(pytree.tree_map(lambda x: None if x is None else x.clone(), batch))
        places.add(tuple(x.data_ptr() for x in pytree.tree_leaves(batch)))
        return update_step(batch, *others)

    monkeypatch.setattr(sampler, "draw", drawing)
    monkeypatch.setattr(staged, "update_step", learning_from)
    for step in range(4):
        staged.step()
        for replay, own in zip(sampler.buffers, staged.agents, strict=True):
            fill(
                replay, own, 3, seed=step
            )  # what comes into replay changes no batch that was drawn
    assert len(drawn) == 5
    assert all(same(a, b) for a, b in zip(learned, drawn, strict=False))
    assert not same(drawn[0], drawn[1])
    assert len(places) == 1, "where a captured graph reads is where the next batch is written"


def test_where_replay_lies_makes_no_difference_to_what_is_learned() -> None:
    here, there = agents(2), agents(2)
    direct, staged = sampling_learner(*here), sampling_learner(*there, prefetch=True)
    for _ in range(3):
        direct.step()
        staged.step()
    for own, other in zip(here, there, strict=True):
        assert changed(weights(own), other) == set()


# Nothing is waited for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "harm",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).any()), torch.nonzero],
)
def test_what_would_be_waited_for_is_noticed(harm: Any) -> None:
    with OperatorCounter() as counter:
        harm(torch.ones(3))
    assert counter.sync_ops


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {}),
        ((LEARNED,), {}),
        (("agent=mbsac", "exploration=none"), {}),
        ((LEARNED,), {"shape": SLOTS}),
    ],
    ids=["rpg", "learned prior", "mbsac", "slots"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_an_update_waits_for_no_device_and_no_shape_depends_on_data(
    count: int, words: tuple[str, ...], options: dict[str, Any]
) -> None:
    step = sampling_learner(*agents(count, *words, **options))
    for _ in range(2):
        with OperatorCounter() as counter:
            step.step()
        assert not counter.sync_ops
        assert counter.operators > 500
