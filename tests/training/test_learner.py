"""Several agents learn side by side exactly as each would alone, and each part by PyTorch's own
Adam on clipped gradients."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perception import ops
from perception.ops import kernels
from tests.small import Seen, agent, batch, changed, learner, noise_of, weights
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.batch import Batch, Noise
from vis_rpg.agent.losses import Metrics, model_loss, model_targets
from vis_rpg.agent.rpg import Agent
from vis_rpg.training import checkpoint
from vis_rpg.training.learner import Learner, stack

M = 3
LEARNED = "agent.latent.prior=learned"
SLOTS = (2, 3, 4)
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "rpg": ((), {}),
    "mbsac": (("agent=mbsac",), {}),
    "learned prior": ((LEARNED,), {}),
    "categorical": ((LEARNED, "agent.latent.kind=categorical", "agent.latent.dim=4"), {}),
    "no bonus": (("exploration=none",), {}),
    "terminations": ((), {"terminates": True}),
    "slots": ((), {"shape": SLOTS, "trained": True}),
}


def members(
    *words: str,
    shape: tuple[int, ...] = (5,),
    trained: bool = False,
    double: bool = False,
    **options: Any,
) -> list[Agent]:
    """M agents of different seeds, whose perceptions differ too."""
    made = []
    for seed in range(M):
        of = agent(
            "exploration.warmup_updates=2",
            "agent.horizon=2",
            *words,
            perception=Seen(shape, trained),
            seed=seed,
            **options,
        )
        nn.init.constant_(of.model.perception.weight, 1 + 0.1 * seed)
        nn.init.constant_(of.target.perception.weight, 1 + 0.1 * seed)
        made.append(of.double() if double else of)
    return made


def inputs(of: list[Agent], update: int) -> list[tuple[Batch, Noise]]:
    """What each agent learns from in this update: its own batch, with ends in it, and its own
    noise."""
    given = []
    for seed, member in enumerate(of):
        data = batch(member, seed=100 * update + seed)
        data.mask[1:, seed], data.terminated[0, seed] = 0, 1
        given.append((data, noise_of(member, data, 1000 + 100 * update + seed)()))
    return given


def joint(given: list[tuple[Batch, Noise]]) -> tuple[Batch, Noise]:
    batches, noises = zip(*given, strict=True)
    return stack(batches), stack(noises)


def learn(learned: Learner, updates: int, begin: int = 0) -> Metrics:
    """Updates of several agents; the last one's metrics."""
    for update in range(begin, begin + updates):
        metrics = learned.update(*joint(inputs(learned.agents, update)))
    return metrics


# Each as alone ------------------------------------------------------------------------------------


def side_by_side(variant: str, double: bool) -> tuple[Learner, list[Learner]]:
    """The same agents in one learner, and each in its own."""
    words, options = VARIANTS[variant]
    beside, alone = (members(*words, double=double, **options) for _ in range(2))
    return learner(*beside), [learner(of) for of in alone]


def update_both(
    together: Learner, each: list[Learner], update: int, rtol: float, atol: float
) -> None:
    """One update of all with the same batches and noise; what they say of it is the same."""
    given = inputs(together.agents, update)
    metrics = together.update(*joint(given))
    expected = [one.update(*own) for one, own in zip(each, given, strict=True)]
    assert all(metrics.keys() == own.keys() for own in expected)
    for name, values in metrics.items():
        alone = torch.cat([own[name] for own in expected])
        torch.testing.assert_close(
            values, alone, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_agents_side_by_side_learn_over_ten_updates_what_each_learns_alone(variant: str) -> None:
    together, each = side_by_side(variant, double=True)
    for update in range(10):
        update_both(together, each, update, 1e-9, 1e-12)
    for of, one in zip(together.agents, each, strict=True):
        torch.testing.assert_close(weights(of), weights(one.agent), rtol=1e-9, atol=1e-12)
    assert changed(weights(together.agents[0]), together.agents[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_agents_side_by_side_learn_in_float32_what_each_learns_alone(variant: str) -> None:
    together, each = side_by_side(variant, double=False)
    update_both(together, each, 0, 1e-4, 1e-6)
    for row, one in enumerate(each):
        for part, rows in together.flat.items():
            gradient, alone = (
                learned.optimizers[part].param_groups[0]["params"][0].grad
                for learned in (together, one)
            )
            rounding = 1e-6 * float(alone.abs().max())
            torch.testing.assert_close(gradient[row], alone[0], rtol=1e-4, atol=rounding)
            clear = (
                alone[0].abs() > 100 * rounding
            )  # Adam's first step makes as much of a gradient of rounding errors as of any other
            torch.testing.assert_close(
                rows.flat[row][clear], one.flat[part].flat[0][clear], rtol=1e-4, atol=1e-6
            )
        torch.testing.assert_close(
            together.target.flat[row], one.target.flat[0], rtol=1e-4, atol=1e-4
        )
        if one.agent.rnd is not None:
            torch.testing.assert_close(
                weights(together.agents[row].rnd.statistics),
                weights(one.agent.rnd.statistics),
                rtol=1e-4,
                atol=1e-6,
            )


@pytest.mark.parametrize("count", [1, M])
def test_a_part_moves_as_by_pytorchs_adam_and_clipping_on_its_own_parameters(count: int) -> None:
    words = ("exploration=none", "agent.grad_clip=0.5", "agent.tau=0.0")
    of, reference = members(*words, double=True)[:count], members(*words, double=True)[:count]
    together = learner(*of, policy=0.0, posterior=0.0, alpha=0.0)
    optimizers = [torch.optim.Adam(own.parts()["model"], own.config.lr) for own in reference]
    for update in range(4):
        given = inputs(of, update)
        norms = together.update(*joint(given))["model_grad_norm"]
        for row, (own, optimizer) in enumerate(zip(reference, optimizers, strict=True)):
            optimizer.zero_grad()
            model_loss(own, *given[row]).losses["model"].backward()
            torch.testing.assert_close(
                nn.utils.clip_grad_norm_(own.parts()["model"], 0.5), norms[row]
            )
            assert norms[row] > 0.5, "something is clipped"
            optimizer.step()
    for own, expected in zip(of, reference, strict=True):
        torch.testing.assert_close(weights(own), weights(expected), rtol=1e-9, atol=1e-12)


# Nothing crosses rows -----------------------------------------------------------------------------


def others_are_equal(first: list[Agent], second: list[Agent]) -> None:
    for row in (0, 2):
        assert changed(weights(first[row]), second[row]) == set()
    assert changed(weights(first[1]), second[1])


@pytest.mark.parametrize("variant", ["rpg", "categorical", "slots"])
def test_a_huge_batch_of_one_agent_is_clipped_for_that_one_alone(variant: str) -> None:
    words, options = VARIANTS[variant]
    quiet, loud = (members(*words, "agent.grad_clip=1e3", **options) for _ in range(2))
    norms = []
    for of, scale in ((quiet, 1.0), (loud, 1e4)):
        learned, given = learner(*of), inputs(of, 0)
        given[1][0].reward.mul_(scale)
        norms.append(learned.update(*joint(given))["model_grad_norm"])
        [flat] = learned.optimizers["model"].param_groups[0]["params"]
    assert torch.equal(norms[0][[0, 2]], norms[1][[0, 2]])
    assert float(norms[0].max()) < 1e3 < 3e3 < float(norms[1][1])
    expected = torch.stack([norms[1][0], torch.tensor(1e3), norms[1][2]])
    torch.testing.assert_close(flat.grad.norm(dim=1), expected, rtol=1e-4, atol=0.0)
    others_are_equal(quiet, loud)


@pytest.mark.parametrize(
    ("variant", "where"),
    [
        *[
            ("rpg", where)
            for where in (
                "model.R.layers.2.bias",
                "pi.net.layers.2.bias",
                "rnd.predictor.layers.2.bias",
                "log_alpha",
                "batch",
                "noise",
            )
        ],
        ("categorical", "pi.net.layers.2.bias"),
        ("slots", "batch"),
    ],
)
def test_a_nan_of_one_agent_leaves_the_others_bit_equal(variant: str, where: str) -> None:
    words, options = VARIANTS[variant]
    sound, poisoned = (members(*words, **options) for _ in range(2))
    for of in (sound, poisoned):
        learned = learner(*of)
        for update in range(2):
            given = inputs(of, update)
            if of is poisoned and update == 0:
                data, noise = given[1]
                {"batch": data.reward, "noise": noise.target}.get(
                    where, dict(of[1].named_parameters()).get(where)
                ).data.fill_(math.nan)
            metrics = learned.update(*joint(given))
    assert any(value[1].isnan() for value in metrics.values())
    assert all(value[[0, 2]].isfinite().all() for value in metrics.values())
    assert any(value.isnan().any() for value in weights(poisoned[1]).values())
    others_are_equal(sound, poisoned)


def test_each_agent_has_an_alpha_of_its_own_that_follows_its_own_entropy() -> None:
    of = members("agent.std_scale=1.0")
    before = torch.tensor([0.02, 0.3, 0.05])
    for own, alpha, log_std in zip(of, before, (-5.0, 0.0, -5.0), strict=True):
        own.log_alpha.data.copy_(alpha.log())
        own.pi.net.layers[-1].weight.data.zero_()
        own.pi.net.layers[-1].bias.data.copy_(torch.tensor([0.0, 0.0, log_std, log_std]))
    learned = learner(*of)
    metrics = learn(learned, 1)
    torch.testing.assert_close(metrics["alpha"], before)
    after = torch.stack([own.log_alpha.detach().exp() for own in of])
    assert (after > before).tolist() == (metrics["entropy"] < -2).tolist() == [True, False, True]


# The agents themselves ----------------------------------------------------------------------------


def test_each_agent_is_what_was_learned_and_what_it_loads_is_learned_on() -> None:
    options = VARIANTS["slots"][1]
    of, other = members(double=True, **options), members(double=True, **options)
    learned, given = learner(*of), inputs(of, 0)
    of[1].load_state_dict(other[2].state_dict())
    learned.update(*joint(given))
    learner(other[2]).update(*given[1])
    torch.testing.assert_close(weights(of[1]), weights(other[2]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, M])
def test_an_agent_says_the_same_before_and_after_a_learner_takes_it(count: int) -> None:
    of = members()[:count]
    before = [weights(own) for own in of]
    shapes = [
        {name: (value.shape, value.dtype) for name, value in own.state_dict().items()} for own in of
    ]
    learner(*of)
    for own, values, kinds in zip(of, before, shapes, strict=True):
        assert changed(values, own) == set()
        assert {
            name: (value.shape, value.dtype) for name, value in own.state_dict().items()
        } == kinds
        assert all(p.requires_grad for part in own.parts().values() for p in part)


def test_the_weight_of_the_priors_entropy_is_set_for_each_agent() -> None:
    of, reference = members(LEARNED, double=True), members(LEARNED, double=True)
    learned, each = learner(*of), [learner(own) for own in reference]
    for agents in (of, reference):
        for own, weight in zip(agents, (0.0, 0.5, 2.0), strict=True):
            own.entropy_z.fill_(weight)
    given = inputs(of, 0)
    metrics = learned.update(*joint(given))["latent_policy_loss"]
    torch.testing.assert_close(
        metrics,
        torch.cat(
            [one.update(*own)["latent_policy_loss"] for one, own in zip(each, given, strict=True)]
        ),
    )


# Checkpoints --------------------------------------------------------------------------------------


def saved(learned: Learner, folder: Path) -> list[dict[str, Any]]:
    """What is left of each agent after a trip to the disk."""
    states = [
        {"agent": own.state_dict(), "learner": learned.state_dict(row)}
        for row, own in enumerate(learned.agents)
    ]
    return [
        checkpoint.load(checkpoint.save(folder / str(row), learned.updates, state))
        for row, state in enumerate(states)
    ]


def restored(states: list[dict[str, Any]], *words: str) -> Learner:
    of = members(*words, double=True)[: len(states)]
    for own, state in zip(of, states, strict=True):
        own.load_state_dict(state["agent"])
    learned = learner(*of)
    learned.load_state_dicts([state["learner"] for state in states])
    return learned


@pytest.mark.parametrize("updates", [0, 1, 4])
def test_agents_go_on_from_their_checkpoints_as_if_they_had_never_stopped(
    tmp_path: Path, updates: int
) -> None:
    learned = learner(*members(LEARNED, double=True))
    if updates:
        learn(learned, updates)
    again = restored(saved(learned, tmp_path), LEARNED)
    for one in (learned, again):
        learn(one, 3, begin=updates)
    for own, other in zip(learned.agents, again.agents, strict=True):
        assert changed(weights(own), other) == set()


def test_an_agent_goes_on_alone_from_where_it_stood_beside_others_and_back(tmp_path: Path) -> None:
    learned = learner(*members(LEARNED, double=True))
    learn(learned, 3)
    alone = [restored([state], LEARNED) for state in saved(learned, tmp_path)]
    for update in (3, 4):
        for one, given in zip(alone, inputs(learned.agents, update), strict=True):
            one.update(*given)
    back = restored([saved(one, tmp_path / str(row))[0] for row, one in enumerate(alone)], LEARNED)
    for one, begin in ((learned, 3), (back, 5)):
        learn(one, 8 - begin, begin)
    for own, other in zip(learned.agents, back.agents, strict=True):
        torch.testing.assert_close(weights(own), weights(other), rtol=1e-9, atol=1e-12)


# The kernels of a CPU -----------------------------------------------------------------------------


@pytest.mark.compiler
@pytest.mark.parametrize("count", [1, M])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update_by_the_kernels_is_that_of_torch(
    variant: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.load()
    monkeypatch.setattr(kernels, "ROWS", 1)  # so that they take batches as small as these
    words, options = VARIANTS[variant]
    theirs, ours = (learner(*members(*words, **options)[:count]) for _ in range(2))
    given = inputs(ours.agents, 0)
    expected = theirs.update(*joint(given))
    monkeypatch.setattr(ops, "BACKEND", "kernels")
    metrics = ours.update(*joint(given))
    assert metrics.keys() == expected.keys()
    for name, values in metrics.items():
        torch.testing.assert_close(
            values,
            expected[name],
            rtol=1e-3,
            atol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, M])
def test_bfloat16_is_for_products_alone_and_comes_close(count: int) -> None:
    given = inputs(members(LEARNED), 0)[:count]
    full, half = (
        learner(*members(LEARNED)[:count], precision=precision)
        for precision in ("float32", "bfloat16")
    )
    expected, metrics = full.update(*joint(given)), half.update(*joint(given))
    assert expected.keys() == metrics.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(
            value.float(),
            expected[name],
            rtol=0.1,
            atol=0.05,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    assert not torch.equal(metrics["model_grad_norm"], expected["model_grad_norm"])
    everything = [
        *metrics.values(),
        *(value for own in half.agents for value in own.state_dict().values()),
    ]
    assert {value.dtype for value in everything} == {torch.float32}
    states: list[Tensor] = [
        value for own in half.state_dict(0)["optimizers"].values() for value in own.values()
    ]
    assert {value.dtype for value in states} == {torch.float32}


def test_bfloat16_does_not_round_the_value_that_critics_learn() -> None:
    of = agent()
    data, noise = batch(of), noise_of(of, batch(of))()
    with torch.autocast("cpu", torch.bfloat16):
        _, q = model_targets(of, data, data.reward, noise.target)
    value = (q - data.reward) / of.config.gamma
    assert value.dtype == torch.float32
    assert float((value - value.bfloat16()).abs().max()) > 1e-4


# Copies and moves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, M])
def test_a_copy_of_a_learners_agent_acts_alike_and_is_independent(count: int) -> None:
    of = members(LEARNED)[:count]
    learned = learner(*of)
    copied, before = copy.deepcopy(of[0]), weights(of[0])
    obs = torch.randn(2, 1, 5).numpy()
    actors = [Actor(own) for own in (of[0], copied)]
    for actor in actors:
        actor.observe(obs[0])
    assert torch.equal(*(actor.select_action(explore=True) for actor in actors))
    learn(learned, 1)
    assert changed(before, of[0])
    assert changed(before, copied) == set(), "an update leaves the copy as it was"
    copied.log_alpha.data.fill_(3.0)
    assert float(of[0].log_alpha.detach()) != 3.0


@pytest.mark.parametrize("part", [lambda of: of, lambda of: of.pi, lambda of: of.rnd.target])
@pytest.mark.parametrize("count", [1, M])
def test_an_agent_that_is_moved_or_cast_stops_its_learner(count: int, part: Any) -> None:
    of = members()[:count]
    learned = learner(*of)
    part(of[-1]).double()
    with pytest.raises(RuntimeError, match="moved or cast after its learner was made"):
        learn(learned, 1)
