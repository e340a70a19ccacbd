"""The world model: known actions at once equal the same actions one by one, and nothing looks
ahead."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from tests.small import Seen
from vis_rpg.agent.world_model import WorldModel


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(Seen((5,)), 2, 3, 6, 16, terminates=False).double()


def test_unrolling_equals_stepping(model: WorldModel) -> None:
    s, actions = torch.randn(7, 6).double(), torch.randn(4, 7, 2).double()
    states, rewards = model.unroll(s, actions)
    h = model.initial(s)
    for t in range(4):
        h, state, embedding = model.step(h, actions[t])
        torch.testing.assert_close(states[t], state)
        torch.testing.assert_close(rewards[t], model.reward(state, embedding))


def test_a_prediction_depends_on_no_later_action(model: WorldModel) -> None:
    s, actions = torch.randn(7, 6).double(), torch.randn(4, 7, 2).double().requires_grad_()
    states, rewards = model.unroll(s, actions)
    for t in range(3):
        [gradient] = torch.autograd.grad(
            states[t].sum() + rewards[t].sum(), actions, retain_graph=True
        )
        assert (gradient[t] != 0).any()
        assert not gradient[t + 1 :].any()


def test_encoding_gives_one_state_per_observation_after_its_history() -> None:
    slots = WorldModel(Seen((2, 3, 4)), 2, 3, 6, 16, terminates=False)
    frames = torch.randn(5, 7, 3, 4)
    s = slots.encode({"x": frames})
    assert s.shape == (4, 7, 6)
    torch.testing.assert_close(slots.encode({"x": frames[2:4]})[0], s[2])


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)])
def test_each_observation_is_encoded_by_itself_and_every_feature_read(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    f = WorldModel(Seen(shape), 2, 3, 6, 16, terminates=False).f
    features = torch.randn(4, 3, *shape, requires_grad=True)
    s = f(features)
    assert s.shape == (4, 3, 6)
    torch.testing.assert_close(f(features[1]), s[1])
    torch.testing.assert_close(f(features[2, 1:2]), s[2, 1:2])
    s.square().sum().backward()
    assert (features.grad.abs().amax(-1) > 0).all()


def test_both_critics_score_each_state_action_and_latent_by_itself(model: WorldModel) -> None:
    s, a, z = (
        torch.randn(4, 7, 6).double(),
        torch.randn(4, 7, 2).double(),
        torch.randn(7, 3).double(),
    )
    q = model.q(s, a, z)
    assert q.shape == (2, 4, 7)
    assert not torch.allclose(q[0], q[1])
    torch.testing.assert_close(model.q(s[2:3, 5:6], a[2:3, 5:6], z[5:6])[:, 0, 0], q[:, 2, 5])


def test_only_a_task_that_ends_has_a_continuation_head(model: WorldModel) -> None:
    assert model.continues is None
    assert WorldModel(Seen((5,)), 2, 3, 6, 16, terminates=True).continues is not None


def test_many_world_models_run_at_once() -> None:
    models = [WorldModel(Seen((5,), trained=True), 2, 3, 6, 16, terminates=False) for _ in range(3)]
    for seed, model in enumerate(models):
        model.perception.weight.data.fill_(seed + 1.0)
    parameters, buffers = stack_module_state(models)
    x, actions, z = torch.randn(3, 4, 7, 5), torch.randn(3, 3, 7, 2), torch.randn(3, 7, 3)

    class Whole(torch.nn.Module):
        def __init__(self, model: WorldModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, x, actions, z):
            s = self.model.encode({"x": x})
            states, rewards = self.model.unroll(s[0], actions)
            return (
                (states - s[1:].detach()).square().mean()
                + rewards.square().mean()
                + self.model.q(states, actions, z).square().mean()
            )

    whole = Whole(models[0])
    named = (
        {f"model.{k}": v for k, v in parameters.items()},
        {f"model.{k}": v for k, v in buffers.items()},
    )
    together = vmap(lambda p, b, *data: functional_call(whole, (p, b), data))(*named, x, actions, z)
    for seed, model in enumerate(models):
        torch.testing.assert_close(together[seed], Whole(model)(x[seed], actions[seed], z[seed]))
