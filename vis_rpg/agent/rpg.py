"""The agent of reparameterized policy learning: its networks, their parts, and their noise.

MBSAC is this agent with an empty latent space. Its losses are in `vis_rpg.agent.losses`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perception.base import ObsSequence, Perception, StorageSpec, StoredObs
from vis_rpg.agent import losses
from vis_rpg.agent.batch import Noise
from vis_rpg.agent.curiosity import CURIOSITY, Curiosity
from vis_rpg.agent.latent import Posterior, make_latent
from vis_rpg.agent.policy import POLICIES, LatentPolicy
from vis_rpg.agent.rnd import ObjectRND
from vis_rpg.agent.rnd_inputs import Frames, RndInput
from vis_rpg.agent.world_model import WorldModel
from vis_rpg.config import AgentConfig, ObjectRNDConfig

REGULAR = 5
"""Episodes with a positive return, of the last 100, from which `gamma_rewarded` holds."""


class Agent(nn.Module):
    """The networks of RPG.

    Args:
        perception: Encodes observations.
        action_dim: A.
        config: The section `agent`.
        exploration: The section `exploration`, None for no bonus.
        terminates: Whether episodes can terminate.
        rnd_input: Replaces perception's input of the RND.
    """

    model_loss, policy_loss = staticmethod(losses.model_loss), staticmethod(losses.policy_loss)
    Z_DRAWS = 4  # draws of z per episode start, each one's baseline the mean of the others

    def __init__(
        self,
        perception: Perception,
        action_dim: int,
        config: AgentConfig,
        exploration: ObjectRNDConfig | None,
        terminates: bool,
        rnd_input: RndInput | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.action_dim = action_dim
        hidden = config.hidden_dim
        self.space = make_latent(config.latent.kind, config.latent.dim, config.latent.posterior_std)
        self.model = self.make_model(perception, terminates)
        state_dim = self.model.state_dim
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.pi = POLICIES[config.policy.kind](
            state_dim, action_dim, self.space.dim, hidden, config.std_scale
        )
        self.redraws = config.latent.every > 0 and self.space.dim > 0
        """Whether z is drawn anew within episodes."""
        learned = config.latent.prior == "learned"
        self.pi_z = LatentPolicy(self.space, state_dim, hidden, learned, self.redraws)
        self.p_phi = Posterior(self.space, state_dim, action_dim, hidden)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.alpha)))
        self.rnd_input = rnd_input
        self.rnd: ObjectRND | Curiosity | None = None
        self.bonus_scale = 0.0
        if exploration is not None:
            width = perception.rnd_input_dim if rnd_input is None else rnd_input.spec.shape[0]
            sizes = exploration.width, exploration.warmup_updates, exploration.window
            if exploration.name == "object_rnd":
                self.rnd = ObjectRND(None if isinstance(rnd_input, Frames) else width, *sizes)
            else:
                self.rnd = CURIOSITY[exploration.name](width, action_dim, *sizes)
            self.bonus_scale = exploration.scale
        weights = torch.tensor([0.97**k for k in range(config.horizon)])
        self.register_buffer("step_weights", weights / weights.sum(), persistent=False)
        for name, value in (
            ("entropy_z", config.latent.entropy),
            ("reward_scale", config.reward_scale),
            ("gamma", config.gamma),
        ):
            self.register_buffer(name, torch.tensor(float(value)), persistent=False)
        self.step_weights: Tensor
        self.entropy_z: Tensor
        self.reward_scale: Tensor
        self.gamma: Tensor

    def follow_schedules(self, interactions: int, rewarded: int) -> None:
        """Set what changes over training: the scale of rewards, gamma, the weight of z's entropy.

        Args:
            interactions: Of the run so far.
            rewarded: How many of the last 100 episodes have a positive return.
        """
        config, latent = self.config, self.config.latent
        if config.gamma_rewarded is not None:
            self.gamma.fill_(config.gamma_rewarded if rewarded >= REGULAR else config.gamma)
        if config.reward_ramp > 0:
            share = min(1.0, interactions / config.reward_ramp)
            self.reward_scale.fill_(config.reward_scale * share)
        if latent.prior == "learned":
            start, end = latent.entropy_decay
            left = min(1.0, max(0.0, (end - interactions) / (end - start)))
            self.entropy_z.fill_(latent.entropy * left)

    def make_model(self, perception: Perception, terminates: bool) -> WorldModel:
        """Make the world model."""
        config = self.config
        return WorldModel(
            perception,
            self.action_dim,
            self.space.dim,
            config.state_dim,
            config.hidden_dim,
            terminates,
            config.critic,
        )

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Call `function(self, *inputs)`; `torch.func.functional_call` substitutes parameters."""
        return function(self, *inputs)

    def read_rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        """Read the RND's input from stored observations (history - 1 + T, B, ...).

        Returns:
            (T, B, M), or frames (1 + T, B, H, W, 3).
        """
        perception = self.model.perception
        if self.rnd_input is not None:
            return self.rnd_input.read(obs_sequence, perception.history)
        return perception.rnd_input(obs_sequence)

    def with_rnd_input(
        self, stored: StoredObs, obs: np.ndarray, positions: np.ndarray | None
    ) -> StoredObs:
        """Add the input that replaces perception's, if any, to what replay stores.

        Without true positions, an input that needs them is zero: an episode's first observation
        neither earns a bonus nor trains the RND.

        Args:
            stored: Columns of perception, each (N, ...).
            obs: (N, ...), as the environment gives them.
            positions: True positions of the objects, (N, K, 2 or 3), or None.
        """
        own = self.rnd_input
        if own is None or own.name in stored:
            return stored
        if positions is None and own.needs_positions:
            return stored | {own.name: torch.zeros(len(obs), *own.spec.shape, dtype=own.spec.dtype)}
        given = obs, 0.0 if positions is None else positions
        tensors = (torch.as_tensor(value, device=self.log_alpha.device) for value in given)
        return stored | {own.name: own(*tensors).to(own.spec.dtype)}

    @property
    def storage(self) -> dict[str, StorageSpec]:
        """Columns that replay stores of one observation."""
        own = {} if self.rnd_input is None else {self.rnd_input.name: self.rnd_input.spec}
        return own | self.model.perception.storage

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each part that has an optimizer."""
        parts: dict[str, list[nn.Parameter]] = {
            "rnd": [p for p in self.rnd.parameters() if p.requires_grad] if self.rnd else [],
            "model": [p for p in self.model.parameters() if p.requires_grad],
            "policy": list(self.pi.parameters()),
            "posterior": list(self.p_phi.parameters()),
            "alpha": [self.log_alpha],
            "latent_policy": list(self.pi_z.parameters()),
        }
        return {name: params for name, params in parts.items() if params}

    def target_parameters(self) -> list[nn.Parameter]:
        """Return the target model's parameters that follow the part `model`, in the same order."""
        pairs = zip(self.target.parameters(), self.model.parameters(), strict=True)
        return [target for target, p in pairs if p.requires_grad]

    def keep_acting_parts(self) -> Agent:
        """Delete what only training and diagnosis use, critics and bonus among it; return self."""
        if not self.config.planner:
            for name in {name for name, _ in self.model.named_children()} - {"perception", "f"}:
                delattr(self.model, name)
        for name in ("target", "p_phi", "rnd"):
            delattr(self, name)
        self.model.perception = self.model.perception.acting()
        self.rnd_input = None
        return self

    def draw_noise(self, batch_size: int, first: int, generator: torch.Generator) -> Noise:
        """Draw the noise of one update.

        Args:
            batch_size: Segments, B.
            first: Episode starts, B''; 0 for none.
            generator: On the device of the update.
        """
        H, E = self.config.horizon, self.pi.noise_dim
        rows = [H * batch_size, batch_size, self.Z_DRAWS * first]
        drawn = torch.randn(H + 1, sum(rows), E, generator=generator, device=generator.device)
        if self.redraws:
            drawn = torch.cat([drawn, self.space.noise((H + 1, sum(rows)), generator)], -1)
        target, policy, start = drawn.split(rows, 1)
        noise = Noise(target.unflatten(1, (H, batch_size)), policy)
        fresh = round(self.config.latent.relabel * batch_size)
        if fresh and self.space.dim and self.pi_z.net is None:
            noise.z = self.space.sample(self.space.noise((fresh,), generator))
        if first:
            noise.first = start.unflatten(1, (self.Z_DRAWS, first))
            noise.z_first = self.space.noise((self.Z_DRAWS, first), generator)
        return noise
