"""Reparameterized policy learning: Algorithm 1 with Equations 2, 3 and 4.

Symbols: s latent state, z latent variable, a action, r reward, r' = -alpha log π(a|s,z) + beta log p_φ(z|s,a) (the reward of Eq. 2
beside the task's), f encoder, h dynamics, R reward model, Q critics, γ discount, H horizon, V_est the value estimate of Eq. 3.
Shapes: B batch, T time, S latent state, A action, Z latent variable. Sequences are time-major: (T, B, ...).

Every loss is a pure function of parameters, batch and noise; nothing here waits for the device or asks which kind of observation it learns
from. MBSAC is this agent with an empty space of z.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perception.percept import Perception, Window
from vis_rpg.exploration import ObjectRND
from vis_rpg.latent import Posterior, make_latent
from vis_rpg.policy import ActionPolicy, LatentPolicy
from vis_rpg.world_model import WorldModel

Metrics = dict[str, Tensor]
Gradients = dict[str, tuple[Tensor | None, ...]]


@dataclass
class Batch:
    """Segments of H steps from replay, and single observations for the RND and for π(z|s₁)."""

    window: Window
    """Stored observations (history - 1 + H + 1, B, ...)."""
    action: Tensor
    """(H, B, A)."""
    reward: Tensor
    """(H, B), as the environment gave it."""
    terminated: Tensor
    """(H, B): 1 where the step ended the task truly."""
    mask: Tensor
    """(H, B): 0 from the end of the episode on."""
    z: Tensor
    """(B, Z): the latent variable that was acting."""
    familiar: Window
    """Stored observations (history, B', ...) drawn from the whole replay, for training the RND."""
    first: Window | None = None
    """Stored observations (history, B'', ...) of episode starts; None where π(z|s₁) is fixed."""


@dataclass
class Noise:
    """Standard normal noise for one update; z_first as the latent space draws it."""

    target: Tensor
    """(H + 1, H * B, A)."""
    policy: Tensor
    """(H + 1, B, A)."""
    first: Tensor | None = None
    """(H + 1, M * B'', A), with M draws of z per episode start."""
    z_first: Tensor | None = None
    """(M * B'', Z)."""


@dataclass
class Imagined:
    """A rollout of the policy in the model from s_0."""

    s: Tensor
    """(H + 1, B, S)."""
    a: Tensor
    """(H + 1, B, A)."""
    log_pi: Tensor
    """(H + 1, B)."""
    value: Tensor
    """V_est by each critic, (2, B)."""


class Agent(nn.Module):
    """The networks of RPG and their updates."""

    Z_DRAWS = 4  # draws of z per episode start, each one's baseline the mean of the others

    def __init__(self, perception: Perception, action_dim: int, config: Any, encoder: str, novelty: Any | None, terminates: bool) -> None:
        """config: the group `agent`; novelty: the group `exploration`, None for no bonus; terminates: whether episodes can truly end."""
        super().__init__()
        self.config = config
        self.action_dim = action_dim
        hidden, state_dim = config.hidden_dim, config.state_dim
        self.space = make_latent(config.latent.kind, config.latent.dim, config.latent.posterior_std)
        self.model = WorldModel(perception, encoder, action_dim, self.space.dim, state_dim, hidden, terminates)
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.pi = ActionPolicy(state_dim, action_dim, self.space.dim, hidden, config.std_scale)
        self.pi_z = LatentPolicy(self.space, state_dim, hidden, config.latent.prior == "learned")
        self.p_phi = Posterior(self.space, state_dim, action_dim, hidden)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.alpha)))
        self.rnd = ObjectRND(perception.novelty_dim, novelty.width, novelty.warmup_updates) if novelty is not None else None
        self.bonus_scale = novelty.scale if novelty is not None else 0.0
        weights = torch.tensor([0.97**k for k in range(config.horizon)])
        self.register_buffer("step_weights", weights / weights.sum(), persistent=False)
        self.register_buffer("entropy_z", torch.tensor(float(config.latent.entropy)), persistent=False)
        self.step_weights: Tensor
        self.entropy_z: Tensor
        self.updates = 0

    # Algorithm 1 ------------------------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One turn of Algorithm 1's loop after acting: the density estimator, ψ by Eq. 4, then π, p_φ, α by Eq. 3 every second time."""
        metrics: Metrics = {}
        if self.rnd is not None:
            self._descend(*self.rnd_gradients(batch), metrics)
        gradients, learned, s = self.model_gradients(batch, noise)
        self._descend(gradients, learned, metrics)
        if self.updates % self.config.policy_every == 0:
            self._descend(*self.policy_gradients(s, batch, noise), metrics)
            if batch.first is not None:
                self._descend(*self.latent_policy_gradients(batch, noise), metrics)
        if self.updates % self.config.target_every == 0:
            self._average_target()
        self.updates += 1
        return metrics

    # Gradients of each part: what `runtime=compile` compiles ----------------------------------------------------------------------------

    def rnd_gradients(self, batch: Batch) -> tuple[Gradients, Metrics]:
        """Of the density estimator, on observations from the whole replay."""
        assert self.rnd is not None
        loss = self.rnd.loss(self.model.perception.novelty(batch.familiar)[0]).mean()
        return self._gradients("rnd", loss), _detached({"rnd_loss": loss})

    def model_gradients(self, batch: Batch, noise: Noise) -> tuple[Gradients, Metrics, Tensor]:
        """Of ψ by Eq. 4, on rewards that are relabelled here with the bonus of the next observation; also returns s_0 (B, S), detached."""
        reward = batch.reward * self.config.reward_scale
        metrics: Metrics = {}
        if self.rnd is not None:
            bonus = self.rnd.bonus(self.model.perception.novelty(batch.window)[1:])
            reward = reward + self.bonus_scale * bonus
            metrics |= {"bonus": _mean(bonus, batch.mask), "bonus_max": bonus.max()}
        loss, s, learned = self.model_loss(batch, reward, noise.target)
        return self._gradients("model", loss), _detached(metrics | learned), s.detach()

    def policy_gradients(self, s: Tensor, batch: Batch, noise: Noise) -> tuple[Gradients, Metrics]:
        """Of π and p_φ on one imagined rollout from s (B, S), and of alpha, which is tuned to the entropy -|A|."""
        imagined = self.imagine(self.model, s, batch.z, noise.policy)
        policy_loss = -imagined.value[0].mean()  # the policy follows the first critic
        posterior_loss = self.posterior_loss(imagined, batch.z)
        alpha = self.log_alpha.exp()
        gradients = self._gradients("policy", policy_loss)
        if self.space.dim:
            gradients |= self._gradients("posterior", posterior_loss)
        gradients |= self._gradients("alpha", (alpha * (self.action_dim - imagined.log_pi.detach())).mean())
        metrics = {"policy_loss": policy_loss, "posterior_loss": posterior_loss, "entropy": -imagined.log_pi.mean(), "alpha": alpha}
        return gradients, _detached(metrics)

    def latent_policy_gradients(self, batch: Batch, noise: Noise) -> tuple[Gradients, Metrics]:
        """Of π(z|s₁), at episode starts."""
        assert batch.first is not None and noise.first is not None and noise.z_first is not None
        loss, metrics = self.latent_policy_loss(batch.first, noise.first, noise.z_first)
        return self._gradients("latent_policy", loss), _detached(metrics)

    # Equation 2: the reward of the joint policy beside the task's -----------------------------------------------------------------------

    def policy_reward(self, s: Tensor, a: Tensor, z: Tensor, log_pi: Tensor, entropy: bool = True) -> Tensor:
        """r' = -alpha log π(a|s,z) + beta log p_φ(z|s,a), (T, B); its gradient flows through s and a, neither into alpha nor (by choice of
        what the policy's step moves) into φ."""
        consistency = self.config.beta * self.p_phi.log_prob(z.expand(*s.shape[:-1], -1), s, a) if self.space.dim else 0.0
        return consistency - self.log_alpha.exp().detach() * log_pi if entropy else consistency + torch.zeros_like(log_pi)

    # Equation 3: V_est ------------------------------------------------------------------------------------------------------------------

    def imagine(self, model: WorldModel, s: Tensor, z: Tensor, noise: Tensor, entropy: bool = True) -> Imagined:
        """Run π(a|s,z) in the model from s (B, S) for H steps and estimate the value of s by Eq. 3.

        The k-step estimate is sum over i < k of γ^i (r_i + r'_i), plus γ^k (Q(s_k, a_k, z) + r'_k); V_est averages k = 1..H with weights
        0.97^k.
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
        extra = self.policy_reward(s, a, z, log_pi, entropy)  # r'_0 .. r'_H
        r = model.reward(s[1:], torch.stack(embeddings))  # r_0 .. r_{H-1}
        q = model.q(s[1:], a[1:], z)  # Q(s_1) .. Q(s_H)
        discount = self._discounts(model, s)
        steps = torch.cumsum(discount[:-1] * (r + extra[:-1]), 0)
        estimates = steps + discount[1:] * (q + extra[1:])  # (2, H, B)
        value = torch.einsum("k,ckb->cb", self.step_weights, estimates)
        return Imagined(s, a, log_pi, value)

    def _discounts(self, model: WorldModel, s: Tensor) -> Tensor:
        """γ^k, times the probability that the episode has not ended by then where it can end: (H + 1, B)."""
        discount = self.config.gamma * torch.ones_like(s[1:, :, 0])
        if model.continues is not None:
            discount = discount * torch.sigmoid(model.continues(s[1:])).squeeze(-1)
        return torch.cat([torch.ones_like(discount[:1]), torch.cumprod(discount, 0)])

    # Equation 4: the loss of ψ ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def targets(self, window: Window, reward: Tensor, terminated: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """ng(f(o')) and ng(r + γ V_est(o', z)), from the slowly averaged model with the online policy: (H, B, S), (H, B)."""
        next_states = self.target.encode(window)[1:]
        H, B = reward.shape
        imagined = self.imagine(self.target, next_states.flatten(0, 1), z.repeat(H, 1), noise, self.config.entropy_in_target)
        value = imagined.value.min(0).values.view(H, B)
        return next_states, reward + self.config.gamma * (1 - terminated) * value

    def model_loss(self, batch: Batch, reward: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """L_ψ: means over latent dimensions and batch, sums over H steps divided by H, masked after an episode's end.

        Returns the loss, f(o_0) (B, S) with gradient, and metrics.
        """
        state_target, q_target = self.targets(batch.window, reward, batch.terminated, batch.z, noise)
        first = {name: value[: self.model.perception.history] for name, value in batch.window.items()}
        s0 = self.model.encode(first)[0]
        s, r = self.model.unroll(s0, batch.action)
        q = self.model.q(torch.cat([s0[None], s[:-1]]), batch.action, batch.z)
        losses = {
            "state": ((s - state_target) ** 2).mean(-1),
            "reward": (r - reward) ** 2,
            "q": ((q - q_target) ** 2).sum(0),
        }
        weights = self.config.loss_weights
        total = weights.state * losses["state"] + weights.reward * losses["reward"] + weights.q * losses["q"]
        if self.model.continues is not None:
            logits = self.model.continues(s.detach()).squeeze(-1)
            total = total + nn.functional.binary_cross_entropy_with_logits(logits, 1 - batch.terminated, reduction="none")
        metrics = {f"{name}_loss": (value * batch.mask).mean() for name, value in losses.items()}
        metrics |= {
            "q_mean": _mean(q.mean(0), batch.mask),
            "q_target": _mean(q_target, batch.mask),
            "reward_mean": _mean(reward, batch.mask),
        }
        return (total * batch.mask).mean(), s0, metrics

    # p_φ and π(z|s₁) --------------------------------------------------------------------------------------------------------------------

    def posterior_loss(self, imagined: Imagined, z: Tensor) -> Tensor:
        """Cross entropy -log p_φ(z|s,a) on detached imagined states and actions."""
        s, a = imagined.s.detach(), imagined.a.detach()
        return -self.p_phi.log_prob(z.expand(*s.shape[:-1], -1), s, a).mean()

    def latent_policy_loss(self, first: Window, noise: Tensor, z_noise: Tensor) -> tuple[Tensor, Metrics]:
        """Policy gradient of V_est(s₁, z) - alpha_z log π(z|s₁) at episode starts, on fresh z."""
        M = self.Z_DRAWS
        with torch.no_grad():
            s = self.model.encode(first)[0].repeat(M, 1)
        outputs = self.pi_z.outputs(s)
        assert outputs is not None
        z = self.space.sample(z_noise, outputs).detach()
        with torch.no_grad():
            value = self.imagine(self.model, s, z, noise).value[0].view(M, -1)
            advantage = (value - (value.sum(0) - value) / (M - 1)).flatten()  # leave-one-out baseline
        entropy = self.space.entropy(outputs).mean()
        loss = -(advantage * self.space.log_prior(z, outputs)).mean() - self.entropy_z * entropy
        return loss, {"latent_policy_loss": loss, "latent_entropy": entropy}

    # Bookkeeping ------------------------------------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Adam]:
        """Adam for each part that has a step of its own; call once the agent is on its device."""
        parts: dict[str, list[nn.Parameter]] = {
            "model": [p for p in self.model.parameters() if p.requires_grad],
            "policy": list(self.pi.parameters()),
            "posterior": list(self.p_phi.parameters()),
            "latent_policy": list(self.pi_z.parameters()),
            "alpha": [self.log_alpha],
            "rnd": list(self.rnd.predictor.parameters()) if self.rnd is not None else [],
        }
        self.parts = {name: params for name, params in parts.items() if params}
        self.optimizers = {name: torch.optim.Adam(params, lr=self.config.lr, fused=True) for name, params in self.parts.items()}
        return self.optimizers

    def compile_update(self) -> None:
        """Compile the gradients of each part, `runtime=compile`; the first updates then take a minute, and need a C++ compiler on a CPU."""
        if hasattr(torch._dynamo.config, "trace_autograd_ops"):  # older versions of torch compile around `torch.autograd.grad`
            torch._dynamo.config.trace_autograd_ops = True  # so that only the gradients asked for are computed
        for name in ("rnd_gradients", "model_gradients", "policy_gradients", "latent_policy_gradients"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def draw_noise(self, batch: Batch, generator: torch.Generator) -> Noise:
        """Noise for one update of this batch."""
        H, B = batch.reward.shape

        def normal(rows: int) -> Tensor:
            return torch.randn(H + 1, rows, self.action_dim, generator=generator, device=generator.device)

        noise = Noise(normal(H * B), normal(B))
        if batch.first is not None:
            rows = self.Z_DRAWS * next(iter(batch.first.values())).shape[1]
            noise.first, noise.z_first = normal(rows), self.space.noise((rows,), generator)
        return noise

    def _gradients(self, part: str, loss: Tensor) -> Gradients:
        """The gradient for the parameters of one part alone; None for what is not used, such as the decoder of a trained slot model."""
        return {part: torch.autograd.grad(loss, self.parts[part], allow_unused=True)}

    def _descend(self, gradients: Gradients, learned: Metrics, metrics: Metrics) -> None:
        """One clipped Adam step of each part that has gradients; adds what was learned, and the norms, to `metrics`."""
        metrics |= learned
        for part, values in gradients.items():
            for p, gradient in zip(self.parts[part], values, strict=True):
                p.grad = gradient
            metrics[f"{part}_grad_norm"] = nn.utils.clip_grad_norm_(self.parts[part], self.config.grad_clip, foreach=True)
            self.optimizers[part].step()

    @torch.no_grad()
    def _average_target(self) -> None:
        """Move the averaged model towards the model by `tau`."""
        pairs = [(t, p) for t, p in zip(self.target.parameters(), self.model.parameters(), strict=True) if p.requires_grad]
        torch._foreach_lerp_([t for t, _ in pairs], [p.detach() for _, p in pairs], self.config.tau)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the steps before an episode's end."""
    return (values * mask).sum() / mask.sum()


def _detached(metrics: Metrics) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}
