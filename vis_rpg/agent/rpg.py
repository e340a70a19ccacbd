"""Reparameterized policy learning: Algorithm 1 with Equations 2, 3 and 4.

Symbols: s latent state, z latent variable, a action, r reward, r' = -alpha log π(a|s,z) + beta log
p_φ(z|s,a) (the reward of Eq. 2 beside the task's), f encoder, h dynamics, R reward model, Q
critics, γ discount, H horizon, V_est the value estimate of Eq. 3. Shapes: B batch, T time, S latent
state, A action, Z latent variable. Sequences are time-major: (T, B, ...).

Every loss is a pure function of parameters, batch and noise; nothing here waits for the device or
asks which kind of observation it learns from. MBSAC is this agent with an empty space of z.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perception.base import Perception, Stored, Window
from vis_rpg.agent.batch import Batch, Noise
from vis_rpg.agent.latent import Posterior, make_latent
from vis_rpg.agent.policy import ActionPolicy, LatentPolicy
from vis_rpg.agent.rnd import make_rnd
from vis_rpg.agent.rnd_inputs import Novelty
from vis_rpg.agent.world_model import WorldModel

Metrics = dict[str, Tensor]
Turn = tuple[dict[str, Tensor], Metrics, tuple[Tensor, ...]]
"""The loss of each part that has one, what was learned, and what the next turn needs of this one.
"""


@dataclass
class Imagined:
    """A rollout of the policy in the model from s_0."""

    s: Tensor
    """(H + 1, B, S)."""
    a: Tensor
    """(H + 1, B, A)."""
    log_pi: Tensor
    """(H + 1, B)."""
    log_p_z: Tensor
    """log p_φ(z|s,a), (H + 1, B); zero where there is no z."""
    value: Tensor
    """V_est by each critic, (critics, B)."""


class Agent(nn.Module):
    """The networks of RPG and their updates."""

    Z_DRAWS = 4  # draws of z per episode start, each one's baseline the mean of the others

    def __init__(
        self,
        perception: Perception,
        action_dim: int,
        config: Any,
        encoder: str,
        exploration: Any | None,
        terminates: bool,
        novelty: Novelty | None = None,
    ) -> None:
        """config: the group `agent`; exploration: that group, None for no bonus; terminates:
        whether episodes can truly end; novelty: what the bonus reads in place of perception's own.
        Raises ValueError where objects are to be scored one by one and there are none."""
        super().__init__()
        self.config = config
        self.action_dim = action_dim
        hidden, state_dim = config.hidden_dim, config.state_dim
        self.space = make_latent(config.latent.kind, config.latent.dim, config.latent.posterior_std)
        self.model = WorldModel(
            perception, encoder, action_dim, self.space.dim, state_dim, hidden, terminates
        )
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.pi = ActionPolicy(state_dim, action_dim, self.space.dim, hidden, config.std_scale)
        self.pi_z = LatentPolicy(self.space, state_dim, hidden, config.latent.prior == "learned")
        self.p_phi = Posterior(self.space, state_dim, action_dim, hidden)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.alpha)))
        self.novelty = novelty
        self.rnd = make_rnd(novelty or perception, exploration) if exploration is not None else None
        self.bonus_scale = exploration.scale if exploration is not None else 0.0
        weights = torch.tensor([0.97**k for k in range(config.horizon)])
        self.register_buffer("step_weights", weights / weights.sum(), persistent=False)
        self.register_buffer(
            "entropy_z", torch.tensor(float(config.latent.entropy)), persistent=False
        )
        self.step_weights: Tensor
        self.entropy_z: Tensor

    # What the bonus reads -------------------------------------------------------------------------

    def novelty_of(self, window: Window) -> tuple[Tensor, Tensor | None]:
        """What the RND reads, (T, B, M) or frames, and where objects are scored alone their
        presence (T, B, N), None for 1."""
        perception = self.model.perception
        if self.novelty is not None:
            return self.novelty.read(window, perception.history), None
        if self.rnd is None or not self.rnd.objects:
            return perception.novelty(window), None
        with torch.no_grad():
            seen = perception.seen(window)
        return perception.novelty(seen), perception.objects(seen)[1]

    # What each part learns from -------------------------------------------------------------------

    def rnd_losses(self, batch: Batch) -> Turn:
        """Of the density estimator, on observations from the whole replay; also returns its errors
        (B',), for `familiarise`."""
        assert self.rnd is not None
        error = self.rnd.error(*self.novelty_of(batch.familiar))[0]
        return {"rnd": error.mean()}, _detached({"rnd_loss": error.mean()}), (error.detach(),)

    def familiarise(self, error: Tensor) -> tuple[()]:
        """Count the errors of an update into the density estimator's statistics, in place."""
        assert self.rnd is not None
        self.rnd.count(error)
        return ()

    def model_losses(self, batch: Batch, noise: Noise) -> Turn:
        """Of ψ by Eq. 4, on rewards that are relabelled here with the bonus of the next
        observation; also returns s_0 (B, S), detached."""
        reward = batch.reward * self.config.reward_scale
        metrics: Metrics = {}
        if self.rnd is not None:
            bonus = self.rnd.bonus(*self.novelty_of(_next(batch.window)))
            reward = reward + self.bonus_scale * bonus
            metrics |= {"bonus": _mean(bonus, batch.mask), "bonus_max": bonus.max()}
        loss, s, learned = self.model_loss(batch, reward, noise.target)
        return {"model": loss}, _detached(metrics | learned), (s.detach(),)

    def policy_losses(self, s: Tensor, batch: Batch, noise: Noise) -> Turn:
        """Of π and p_φ on one imagined rollout from s (B, S), and of alpha, which is tuned to the
        entropy -|A|."""
        imagined = self.imagine(
            self.model, s, batch.z, noise.policy, critics=1
        )  # the policy follows the first critic
        alpha = self.log_alpha.exp()
        losses = {"policy": -imagined.value[0].mean()}
        if self.space.dim:
            losses[
                "posterior"
            ] = -imagined.log_p_z.mean()  # the cross entropy of z, on imagined states and actions
        losses["alpha"] = (alpha * (self.action_dim - imagined.log_pi.detach())).mean()
        metrics = {
            f"{part}_loss": losses[part] for part in ("policy", "posterior") if part in losses
        }
        return losses, _detached(metrics | {"entropy": -imagined.log_pi.mean(), "alpha": alpha}), ()

    def latent_policy_losses(self, batch: Batch, noise: Noise) -> Turn:
        """Of π(z|s₁), at episode starts."""
        assert batch.first is not None and noise.first is not None and noise.z_first is not None
        loss, metrics = self.latent_policy_loss(batch.first, noise.first, noise.z_first)
        return {"latent_policy": loss}, _detached(metrics), ()

    # Equation 2: the reward of the joint policy beside the task's ---------------------------------

    def policy_reward(self, log_pi: Tensor, log_p_z: Tensor, entropy: bool = True) -> Tensor:
        """r' = -alpha log π(a|s,z) + beta log p_φ(z|s,a), (T, B); its gradient does not flow into
        alpha, and into φ only if asked for."""
        consistency = self.config.beta * log_p_z
        return consistency - self.log_alpha.exp().detach() * log_pi if entropy else consistency

    # Equation 3: V_est ----------------------------------------------------------------------------

    def imagine(
        self,
        model: WorldModel,
        s: Tensor,
        z: Tensor,
        noise: Tensor,
        entropy: bool = True,
        critics: int = 2,
    ) -> Imagined:
        """Run π(a|s,z) in the model from s (B, S) for H steps and estimate the value of s by Eq. 3,
        with the first one or both critics.

        The k-step estimate is sum over i < k of γ^i (r_i + r'_i), plus γ^k (Q(s_k, a_k, z) + r'_k);
        V_est averages k = 1..H with weights 0.97^k.
        """
        h = model.initial(s)
        states, actions, log_pis, embeddings = [s], [], [], []
        for step in noise:
            a, log_pi = self.pi(states[-1], z, step)
            actions.append(a)
            log_pis.append(log_pi)
            if len(actions) < len(noise):
                h, s, embedding = model.step(h, a)
                states.append(s)
                embeddings.append(embedding)
        s, a, log_pi = torch.stack(states), torch.stack(actions), torch.stack(log_pis)
        log_p_z = self.p_phi.log_prob(z.expand(*s.shape[:-1], -1), s, a)
        extra = self.policy_reward(log_pi, log_p_z, entropy)  # r'_0 .. r'_H
        r = model.reward(s[1:], torch.stack(embeddings))  # r_0 .. r_{H-1}
        q = model.q(s[1:], a[1:], z, critics)  # Q(s_1) .. Q(s_H)
        discount = self._discounts(model, s)
        steps = torch.cumsum(discount[:-1] * (r + extra[:-1]), 0)
        estimates = steps + discount[1:] * (q + extra[1:])  # (critics, H, B)
        value = (self.step_weights.unsqueeze(1) * estimates).sum(
            1
        )  # no product of matrices, which autocast would round
        return Imagined(s, a, log_pi, log_p_z, value)

    def _discounts(self, model: WorldModel, s: Tensor) -> Tensor:
        """γ^k, times the probability that the episode has not ended by then where it can end: (H +
        1, B)."""
        discount = self.config.gamma * torch.ones_like(s[1:, :, 0])
        if model.continues is not None:
            discount = discount * torch.sigmoid(model.continues(s[1:])).squeeze(-1)
        return torch.cat([torch.ones_like(discount[:1]), torch.cumprod(discount, 0)])

    # Equation 4: the loss of ψ --------------------------------------------------------------------

    @torch.no_grad()
    def targets(
        self, window: Window, reward: Tensor, terminated: Tensor, z: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ng(f(o')) and ng(r + γ V_est(o', z)), from the slowly averaged model with the online
        policy: (H, B, S), (H, B)."""
        next_states = self.target.encode(_next(window))
        H, B = reward.shape
        imagined = self.imagine(
            self.target,
            next_states.flatten(0, 1),
            z.repeat(H, 1),
            noise.flatten(1, 2),
            self.config.entropy_in_target,
        )
        value = imagined.value.min(0).values.view(H, B)
        return next_states, reward + self.config.gamma * (1 - terminated) * value

    def model_loss(
        self, batch: Batch, reward: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Metrics]:
        """L_ψ: means over latent dimensions and batch, sums over H steps divided by H, masked after
        an episode's end.

        Returns the loss, f(o_0) (B, S) with gradient, and metrics.
        """
        state_target, q_target = self.targets(
            batch.window, reward, batch.terminated, batch.z, noise
        )
        first = {
            name: value[: self.model.perception.history] for name, value in batch.window.items()
        }
        s0 = self.model.encode(first)[0]
        s, r = self.model.unroll(s0, batch.action)
        q = self.model.q(torch.cat([s0[None], s[:-1]]), batch.action, batch.z)
        q_error = (q - q_target) ** 2
        losses = {
            "state": ((s - state_target) ** 2).mean(-1),
            "reward": (r - reward) ** 2,
            "q": q_error.mean(0) if self.config.q_reduce == "mean" else q_error.sum(0),
        }
        weights = self.config.loss_weights
        total = (
            weights.state * losses["state"]
            + weights.reward * losses["reward"]
            + weights.q * losses["q"]
        )
        if self.model.continues is not None:
            logits = self.model.continues(s.detach()).squeeze(-1)
            total = total + nn.functional.binary_cross_entropy_with_logits(
                logits, 1 - batch.terminated, reduction="none"
            )
        metrics = {f"{name}_loss": (value * batch.mask).mean() for name, value in losses.items()}
        metrics |= {
            "q_mean": _mean(q.mean(0), batch.mask),
            "q_target": _mean(q_target, batch.mask),
            "reward_mean": _mean(reward, batch.mask),
        }
        return (total * batch.mask).mean(), s0, metrics

    # π(z|s₁) --------------------------------------------------------------------------------------

    def latent_policy_loss(
        self, first: Window, noise: Tensor, z_noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Policy gradient of V_est(s₁, z) at episode starts, on fresh z, less alpha_z KL(π(z|s₁) ‖
        fixed prior).

        In Eq. 2 the consistency beta log p_φ is paid in every step, log π(z|s₁) once: an entropy
        bonus, which has no anchor, either loses to it, so that π(z|s₁) narrows before any reward is
        known, or drives π(z|s₁) far beyond the z that all else was learned with.
        """
        M = self.Z_DRAWS
        with torch.no_grad():
            s = self.model.encode(first)[0].repeat(M, 1)
        outputs = self.pi_z.outputs(s)
        assert outputs is not None
        z = self.space.sample(z_noise.flatten(0, 1), outputs).detach()
        with torch.no_grad():
            value = (
                self.imagine(self.model, s, z, noise.flatten(1, 2), critics=1).value[0].view(M, -1)
            )
            advantage = (
                value - (value.sum(0) - value) / (M - 1)
            ).flatten()  # leave-one-out baseline
        divergence = self.space.divergence(outputs).mean()
        loss = self.entropy_z * divergence - (advantage * self.space.log_prior(z, outputs)).mean()
        return loss, {
            "latent_policy_loss": loss,
            "latent_entropy": self.space.entropy(outputs).mean(),
        }

    # Bookkeeping ----------------------------------------------------------------------------------

    @property
    def stored(self) -> Stored:
        """What replay keeps of one observation."""
        beside: Stored = (
            {self.novelty.name: (self.novelty.shape, self.novelty.dtype)}
            if self.novelty is not None
            else {}
        )
        return beside | self.model.perception.stored

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each part that has a step of its own."""
        parts: dict[str, list[nn.Parameter]] = {
            "rnd": list(self.rnd.predictor.parameters()) if self.rnd is not None else [],
            "model": [p for p in self.model.parameters() if p.requires_grad],
            "policy": list(self.pi.parameters()),
            "posterior": list(self.p_phi.parameters()),
            "alpha": [self.log_alpha],
            "latent_policy": list(self.pi_z.parameters()),
        }
        return {name: params for name, params in parts.items() if params}

    def averaged(self) -> list[nn.Parameter]:
        """The parameters of the averaged model that follow those of the part `model`, in the same
        order."""
        return [
            t
            for t, p in zip(self.target.parameters(), self.model.parameters(), strict=True)
            if p.requires_grad
        ]

    def forward(self, method: str, *inputs: Any) -> Any:
        """A method by its name: the one door that `torch.func.functional_call` knows."""
        return getattr(self, method)(*inputs)

    def draw_noise(self, batch_size: int, first: int, generator: torch.Generator) -> Noise:
        """Noise for one update on `batch_size` segments and `first` episode starts (0: none)."""
        H, A = self.config.horizon, self.action_dim
        rows = [H * batch_size, batch_size, self.Z_DRAWS * first]
        drawn = torch.randn(H + 1, sum(rows), A, generator=generator, device=generator.device)
        target, policy, start = drawn.split(rows, 1)
        noise = Noise(target.unflatten(1, (H, batch_size)), policy)
        if first:
            noise.first = start.unflatten(1, (self.Z_DRAWS, first))
            noise.z_first = self.space.noise((self.Z_DRAWS, first), generator)
        return noise


def _next(window: Window) -> Window:
    """The stored observations that the next percepts need: without what only the first one does."""
    return {name: value[1:] for name, value in window.items()}


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the steps before an episode's end."""
    return (values * mask).sum() / mask.sum()


def _detached(metrics: Metrics) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}
