"""Diagnose a run: what its critics, model, bonus and latent variable are worth on fresh episodes.

Symbols and shapes as in `vis_rpg.agent.losses`; E episodes, T steps of an episode.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vis_rpg.agent.actor import Actor
from vis_rpg.agent.curiosity import Curiosity
from vis_rpg.agent.losses import imagine, policy_reward
from vis_rpg.agent.rpg import Agent
from vis_rpg.analysis.diagnosis_figure import figure
from vis_rpg.analysis.evaluation import episode_seed, play
from vis_rpg.analysis.frequencies import compare_frequencies, visited_coordinates
from vis_rpg.config import DiagnoseConfig
from vis_rpg.envs.make import object_positions, task_of
from vis_rpg.errors import require
from vis_rpg.training import checkpoint
from vis_rpg.training.load import load, load_whole_config
from vis_rpg.training.logger import without_nan

OPEN_LOOP = 12
"""Steps of the model's open-loop predictions."""
V_DRAWS = 16
"""Imagined rollouts that the value after a truncation is averaged over."""
REPEATS = 4
"""Episodes of each z, all from one start, that tell what z decides from what noise does."""


@dataclass
class Episode:
    """One episode, as the losses see it."""

    s: Tensor
    """Encoded observations, (T + 1, S)."""
    a: Tensor
    """(T, A)."""
    z: Tensor
    """(Z,)."""
    task_reward: Tensor
    """Scaled by `agent.reward_scale`, (T,)."""
    bonus: Tensor
    """Scaled by `exploration.scale`, of the next observation, (T,)."""
    rnd_input: Tensor
    """Of the next observation, (T, M); (T, 0) where there is no RND or it reads frames."""
    entropy_reward: Tensor
    """-alpha log π(a|s,z), (T,)."""
    z_reward: Tensor
    """beta log p_φ(z|s,a), (T,)."""
    positions: np.ndarray
    """True positions of the objects of interest, (T + 1, N, 2 or 3), world units."""
    success: bool
    """In the last step."""
    last_value: Tensor
    """V_est of the last observation, a scalar; 0 where the episode terminated."""

    @property
    def terms(self) -> dict[str, Tensor]:
        """What is paid and what the policy adds, by name, each (T,)."""
        names = "task_reward", "bonus", "entropy_reward", "z_reward"
        return {name: getattr(self, name) for name in names}

    @property
    def reward(self) -> Tensor:
        """What R is trained on, (T,)."""
        return self.task_reward + self.bonus

    def policy_reward(self, entropy: bool) -> Tensor:
        """Return r' of Eq. 2, with or without -alpha log π, (T,)."""
        return self.z_reward + self.entropy_reward if entropy else self.z_reward


@torch.no_grad()
def record_episode(
    actor: Actor,
    env: gymnasium.Env,
    seed: int,
    explore: bool = True,
    z: Tensor | None = None,
    actions: Tensor | None = None,
) -> Episode:
    """Play an episode and read everything that its losses would.

    Args:
        actor: Of one environment.
        env: The environment.
        seed: Determines the start.
        explore: Sample the actions instead of taking their mean.
        z: (Z,) latent variable; None draws it from π(z|s₁).
        actions: (T, A), taken in place of the policy's; the episode ends with them.
    """
    agent, config, history = actor.agent, actor.agent.config, actor.agent.model.perception.history
    actor.reset(z)
    obs, info = env.reset(seed=seed)
    stored, states, rewards = [], [], []
    taken: list[Tensor] = []
    positions, ended = [object_positions(info)], False
    while True:
        seen, places = obs[None], positions[-1][None].astype(np.float32)
        stored.append(agent.with_rnd_input(actor.observe(seen), seen, places))
        states.append(agent.model.f(actor.features))
        if ended:
            break
        instead = None if actions is None else actions[len(taken)][None]
        action = actor.select_action(explore, instead)
        obs, reward, terminated, truncated, info = env.step(action[0].cpu().numpy())
        taken.append(action)
        rewards.append(float(reward))
        positions.append(object_positions(info))
        ended = bool(terminated or truncated) or (
            actions is not None and len(taken) == len(actions)
        )
    s, a, z = torch.cat(states), torch.cat(taken), actor.z[0]
    # An episode's first observation also stands for those before it.
    sequence = {
        name: torch.stack([stored[0][name]] * (history - 1) + [each[name] for each in stored])
        for name in stored[0]
    }
    bonus, rnd_input = torch.zeros(len(a), device=actor.device), torch.zeros(len(a), 0)
    if agent.rnd is not None:
        read = agent.read_rnd_input(sequence)
        given = (read, a[:, None]) if isinstance(agent.rnd, Curiosity) else (read,)
        bonus = agent.bonus_scale * agent.rnd.bonus(*given)[-len(a) :, 0]
        if read.dim() == 3:
            rnd_input = read[-len(a) :, 0]
    z_rows = z.expand(len(a), -1)
    log_pi, log_p_z = agent.pi.log_prob(s[:-1], z_rows, a), agent.p_phi.log_prob(z_rows, s[:-1], a)
    shape = config.horizon + 1, V_DRAWS, agent.pi.noise_dim
    noise = torch.randn(shape, generator=actor.generator, device=actor.device)
    last = s[-1].expand(V_DRAWS, -1), z.expand(V_DRAWS, -1)
    value = imagine(agent, agent.model, *last, noise, entropy=config.entropy_in_target).value
    z_reward = policy_reward(agent, log_pi, log_p_z, entropy=False)
    return Episode(
        s=s,
        a=a,
        z=z.clone(),
        task_reward=agent.reward_scale * torch.tensor(rewards, device=actor.device),
        bonus=bonus,
        rnd_input=rnd_input,
        entropy_reward=policy_reward(agent, log_pi, log_p_z) - z_reward,
        z_reward=z_reward,
        positions=np.stack(positions),
        success=bool(info["success"]),
        last_value=value.min(0).values.mean() * (not terminated),
    )


def monte_carlo_returns(episode: Episode, gamma: float, entropy: bool) -> Tensor:
    """Return what Q(s_t, a_t, z) estimates, from what followed, (T,).

    G_t = r_t + γ (r'_{t+1} + G_{t+1}), and after a truncation G_T stands for V_est(s_T, z) - r'_T.

    Args:
        episode: With its rewards.
        gamma: Discount.
        entropy: Whether r' includes -alpha log π, as in the target of Q.
    """
    extra = episode.policy_reward(entropy)
    following, returns = episode.last_value, []
    for r, own in zip(episode.reward.flip(0), extra.flip(0), strict=True):
        returns.append(r + gamma * following)
        following = own + returns[-1]
    return torch.stack(returns).flip(0)


def correlation(x: Tensor, y: Tensor) -> float:
    """Return Pearson's correlation of (N,) and (N,); NaN where one is constant."""
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def return_correlation(episodes: list[Episode], returns: list[Tensor]) -> dict[str, float]:
    """Return how the sum of each term over an episode goes with the return of its first step.

    Args:
        episodes: E of them.
        returns: `monte_carlo_returns` of each.
    """
    first = torch.stack([each[0] for each in returns])
    return {
        name: round(correlation(torch.stack([e.terms[name].sum() for e in episodes]), first), 3)
        for name in episodes[0].terms
    }


@torch.no_grad()
def open_loop(agent: Agent, episodes: list[Episode], steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predict from every state along the actions that were taken.

    Args:
        agent: The agent.
        episodes: At least one longer than `steps`.
        steps: K.

    Returns:
        The squared error of predicted states as a share of the states' variance, (K,), and
        predicted and paid rewards, each (K, B).
    """
    states, actions, rewards = [], [], []
    for episode in episodes:
        if len(episode.a) >= steps:
            states.append(episode.s.unfold(0, steps + 1, 1).permute(2, 0, 1))
            actions.append(episode.a.unfold(0, steps, 1).permute(2, 0, 1))
            rewards.append(episode.reward.unfold(0, steps, 1).T)
    s, a, r = (torch.cat(each, 1) for each in (states, actions, rewards))
    predicted, reward = agent.model.unroll(s[0], a)
    spread = torch.cat([episode.s for episode in episodes]).var(0).mean()
    return ((predicted - s[1:]) ** 2).mean((1, 2)) / spread, reward, r


def effective_rank(features: Tensor) -> float:
    """Return the exponential of the entropy of normalised singular values (Roy & Vetterli 2007).

    Args:
        features: (N, S); their mean is taken off.
    """
    share = torch.linalg.svdvals(features - features.mean(0))
    share = share / share.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


@torch.no_grad()
def z_accuracy(agent: Agent, episodes: list[Episode]) -> float:
    """Return how often p_φ finds the z that acted among those of all episodes; chance is 1/E."""
    if not agent.space.dim:
        return float("nan")
    every = torch.stack([episode.z for episode in episodes])
    found = []
    for index, episode in enumerate(episodes):
        s, a = episode.s[:-1, None], episode.a[:, None]
        shape = len(episode.a), len(every), -1
        log_p = agent.p_phi.log_prob(every.expand(shape), s.expand(shape), a.expand(shape))
        found.append((log_p.argmax(1) == index).float().mean())
    return float(torch.stack(found).mean())


def decided_by_z(positions: np.ndarray) -> np.ndarray:
    """Return the share of the variance of objects' places that z decides, the rest being noise.

    The intraclass correlation of a one-way analysis of variance: b / (b + w), with w the variance
    within episodes of one z and b that of the means of z, w / R of it aside; each summed over steps
    and axes. Unlike a regression on z it sees what is not linear, and no change of the policy.

    Args:
        positions: (K, R, T, N, D) from one start with one policy: R episodes for each of K values
            of z.

    Returns:
        (N,), at least 0; NaN for objects that never differ.
    """
    repeats = positions.shape[1]
    within = positions.var(1, ddof=1).mean(0).sum((0, 2))
    between = positions.mean(1).var(0, ddof=1).sum((0, 2)) - within / repeats
    total = np.maximum(between, 0) + within
    still = total < 1e-9
    return np.where(still, np.nan, np.maximum(between, 0) / np.where(still, 1, total))


def places_by_z(actor: Actor, env: gymnasium.Env, count: int, seed: int) -> np.ndarray:
    """Play `REPEATS` episodes with sampled actions for each of `count` z, from the start of `seed`.

    Returns:
        Positions (count, REPEATS, T + 1, N, 2 or 3); episodes that ended earlier stay where they
        ended.
    """
    played = []
    for _ in range(count):
        z = None  # drawn in the first episode
        for _ in range(REPEATS):
            steps = play(actor, env, seed, z, explore=True)
            played.append(np.stack([step.objects for step in steps]))
            z = actor.z[0].clone()
    length = max(map(len, played))
    padded = [np.pad(p, ((0, length - len(p)), (0, 0), (0, 0)), mode="edge") for p in played]
    return np.stack(padded).reshape(count, REPEATS, *padded[0].shape)


@torch.no_grad()
def recombined_bonus(agent: Agent, rnd_input: Tensor, seed: int) -> float:
    """Return the mean bonus of objects as they were seen, each at a step of its own.

    Where it is no higher than the bonus of what was seen, the bonus does not tell arrangements of
    objects apart.

    Args:
        agent: The agent.
        rnd_input: (N, M).
        seed: Of the steps.

    Returns:
        NaN where there is no RND, or it does not read two objects or more.
    """
    objects = 1 if agent.rnd_input is not None else agent.model.perception.rnd_objects
    if agent.rnd is None or isinstance(agent.rnd, Curiosity) or objects == 1:
        return float("nan")
    parts = rnd_input.unflatten(-1, (objects, -1))
    order = torch.rand(parts.shape[:2], generator=torch.Generator().manual_seed(seed)).argsort(0)
    mixed = parts.gather(0, order.to(parts.device)[..., None].expand_as(parts)).flatten(-2)
    return float(agent.bonus_scale * agent.rnd.bonus(mixed).mean())


@torch.no_grad()
def critic_values(agent: Agent, episode: Episode) -> Tensor:
    """Return the smaller critic's Q(s_t, a_t, z), (T,); for critics V, V(s_t, z) - r'_t."""
    s, a = episode.s[:-1, None], episode.a[:, None]
    value = agent.model.q(s, a, episode.z[None]).min(0).values[:, 0]
    if agent.model.critic == "v":
        value = value - episode.policy_reward(agent.config.entropy_in_target)
    return value


@dataclass
class Diagnosis:
    """Episodes and what the agent's parts make of them."""

    episodes: list[Episode]
    q: list[Tensor]
    """The smaller critic's values of each episode, (T,)."""
    returns: list[Tensor]
    """`monte_carlo_returns` of each episode."""
    state_error: Tensor
    """Of `open_loop`, (K,)."""
    predicted_reward: Tensor
    paid_reward: Tensor
    """Each (K, B)."""
    figures: dict[str, Any]


@torch.no_grad()
def diagnose(actor: Actor, env: gymnasium.Env, count: int, seed: int) -> Diagnosis:
    """Play episodes with sampled actions and compare what the agent expects with what happens.

    Args:
        actor: Of one environment; its generator is seeded anew.
        env: The environment.
        count: E.
        seed: Of starts, z and actions.
    """
    require(count >= 2, f"episodes={count}: at least 2 are needed")
    name = actor.agent.config.name
    require(name != "sac", f"agent={name}: there is no world model to diagnose")
    require(not actor.agent.redraws, "agent.latent.every: only agents that keep z are diagnosed")
    agent = actor.agent
    actor.generator.manual_seed(seed)
    episodes = [
        record_episode(actor, env, episode_seed(seed, index))
        for index in tqdm(range(count), desc="diagnosing", unit="episode")
    ]
    entropy = agent.config.entropy_in_target
    q = [critic_values(agent, e) for e in episodes]
    returns = [monte_carlo_returns(e, float(agent.gamma), entropy) for e in episodes]
    steps = min(OPEN_LOOP, max(len(e.a) for e in episodes))
    state_error, predicted, paid = open_loop(agent, episodes, steps)
    states = torch.cat([e.s for e in episodes])
    all_q, all_returns = torch.cat(q), torch.cat(returns)
    by_z = torch.stack([torch.stack([x.mean() for x in each]) for each in (q, returns)])

    figures = {
        "episodes": count,
        "success": float(np.mean([e.success for e in episodes])),
        "q": float(all_q.mean()),
        "return": float(all_returns.mean()),
        "bias": float((all_q - all_returns).mean()),
        "first_step_bias": float(
            np.mean([float(a[0] - b[0]) for a, b in zip(q, returns, strict=True)])
        ),
        "q_error": float((all_q - all_returns).square().mean().sqrt()),
        "q_correlation": correlation(all_q, all_returns),
        "q_std_over_z": float(by_z[0].std()),
        "return_std_over_z": float(by_z[1].std()),
        "q_correlation_over_z": correlation(*by_z),
        **{
            f"{name}_per_step": float(torch.cat([e.terms[name] for e in episodes]).mean())
            for name in episodes[0].terms
        },
        "return_correlation": return_correlation(episodes, returns),
        "recombined_bonus": recombined_bonus(
            agent, torch.cat([e.rnd_input for e in episodes]), seed
        ),
        "state_error": [round(float(x), 4) for x in state_error],
        "reward_error": float((predicted[0] - paid[0]).square().mean().sqrt()),
        "reward_bias": float((predicted[0] - paid[0]).mean()),
        "reward_std": float(paid[0].std()),
        "reward_correlation": correlation(predicted[0], paid[0]),
        "state_rank": effective_rank(states),
        "state_norm": float(states.norm(dim=-1).mean()),
        "z_accuracy": z_accuracy(agent, episodes),
    }
    if agent.space.dim and (names := task_of(env).object_names):
        shares = decided_by_z(places_by_z(actor, env, count, episode_seed(seed, 0)))
        figures["decided_by_z"] = {
            name: round(float(share), 3) for name, share in zip(names, shares, strict=True)
        }
    return Diagnosis(episodes, q, returns, state_error, predicted, paid, figures)


def main(config: DiagnoseConfig) -> None:
    """Diagnose a run; write diagnosis.json and diagnosis.png into its folder, and print figures."""
    torch.set_num_threads(1)
    run = Path(config.run)
    settings = load_whole_config(run)
    actor, env = load(run, "cpu", config.seed)
    step = int(checkpoint.latest(run).name.removeprefix("step-"))
    coordinates = visited_coordinates(run, actor.agent) if config.frequencies else None
    diagnosis = diagnose(actor, env, config.episodes, config.seed)
    if coordinates is not None:
        diagnosis.figures["rnd_by_frequencies"] = compare_frequencies(
            coordinates, config.frequencies, settings.exploration, settings.agent.lr, config.seed
        )
    title = (
        f"{settings.task.name} from {settings.obs.kind}, seed {settings.seed}: "
        f"{step:,} interactions, {config.episodes} episodes with sampled actions"
    )
    (run / "diagnosis.json").write_text(
        json.dumps(without_nan({"step": step, **diagnosis.figures}), indent=2) + "\n"
    )
    drawn = figure(diagnosis, actor, env, title)
    drawn.savefig(run / "diagnosis.png", dpi=110)
    plt.close(drawn)
    by_frequencies = diagnosis.figures.pop("rnd_by_frequencies", {})
    for name, value in diagnosis.figures.items():
        print(f"  {name:<24}{f'{value:.3f}' if isinstance(value, float) else value}")
    for frequencies, found in by_frequencies.items():
        print(f"  {f'RND, {frequencies} frequencies':<24}{found}")
    print(f"diagnosis: {run / 'diagnosis.json'}, {run / 'diagnosis.png'}")
