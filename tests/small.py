"""Small agents, batches and configs that the tests of the core share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from perception.base import ObsSequence, Perception, StorageSpec, StoredObs
from vis_rpg.agent.batch import Batch, Noise
from vis_rpg.agent.rpg import Agent
from vis_rpg.baselines.make import AGENTS
from vis_rpg.compose import compose
from vis_rpg.training.learner import Learner
from vis_rpg.training.replay_buffer import BatchSpec, ReplayBuffer


@cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    return compose(["preset=debug", "device=cpu", *words])


def config(*words: str) -> DictConfig:
    """The debug preset with these words of the command line; composed once whatever the folder
    `out`."""
    out = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    made = copy.deepcopy(_composed(tuple(word for word in words if not word.startswith("out="))))
    if out:
        made.out = out[-1]
    return made


class Seen(Perception):
    """Features are what is stored times a weight: vectors (D,), or slots (2, K, D) of two frames.
    The RND reads the first three numbers."""

    def __init__(self, feature_shape: tuple[int, ...] = (5,), trained: bool = False) -> None:
        super().__init__()
        self.feature_shape, self.rnd_input_dim = feature_shape, 3
        self.history = 2 if len(feature_shape) == 3 else 1
        shape = feature_shape[-2:] if self.history == 2 else feature_shape
        self.storage = {"x": StorageSpec(shape, torch.float32)}
        self.weight = nn.Parameter(torch.ones(()), requires_grad=trained)

    def to_storage(
        self, obs: Tensor, previous_action: Tensor, is_first: Tensor, hidden: dict[str, Tensor]
    ) -> tuple[StoredObs, dict[str, Tensor]]:
        return {"x": obs}, {}

    def features(self, obs_sequence: ObsSequence) -> Tensor:
        x = obs_sequence["x"] * self.weight
        return torch.stack([x[:-1], x[1:]], 2) if self.history == 2 else x

    @torch.no_grad()
    def rnd_input(self, obs_sequence: ObsSequence) -> Tensor:
        return obs_sequence["x"][self.history - 1 :].flatten(2)[..., :3]


def agent(
    *words: str,
    perception: Perception | None = None,
    terminates: bool = False,
    actions: int = 2,
    seed: int = 0,
) -> Agent:
    """An agent of debug size."""
    settings = config(*words)
    torch.manual_seed(seed)
    exploration = settings.exploration if settings.exploration.name != "none" else None
    kind = AGENTS.get(settings.agent.name, Agent)
    return kind(perception or Seen(), actions, settings.agent, exploration, terminates)


def learner(*of: Agent, precision: str = "float32", **rates: float) -> Learner:
    """Of agents whose type will not change any more; rates: of parts that are to learn at another
    than the config's."""
    made = Learner(of, precision)
    for part, rate in rates.items():
        made.optimizers[part].param_groups[0]["lr"] = rate
    return made


def batch(of: Agent, size: int = 6, seed: int = 1) -> Batch:
    """Random segments for an agent that sees through `Seen`, none of which ends."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(of.log_alpha.dtype)

    horizon, history = of.config.horizon, of.model.perception.history
    shape = of.model.perception.storage["x"].shape
    return Batch(
        obs_sequence={"x": normal(history + horizon, size, *shape)},
        action=normal(horizon, size, of.action_dim).tanh(),
        reward=normal(horizon, size),
        terminated=torch.zeros(horizon, size).to(of.log_alpha.dtype),
        mask=torch.ones(horizon, size).to(of.log_alpha.dtype),
        z=of.space.sample(of.space.noise((size,), generator)).to(of.log_alpha.dtype),
        paid=torch.arange(size) % 2 == 0,
        rnd_obs={"x": normal(history, 8, *shape)},
        first={"x": normal(history, 4, *shape)} if of.pi_z.net is not None else None,
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names of the parameters and buffers that are no longer what they were."""
    return {
        name for name, value in module.state_dict().items() if not torch.equal(before[name], value)
    }


def noise_of(of: Agent, data: Batch, seed: int = 2) -> Callable[[], Noise]:
    """Draws the same noise for this batch at every call, in the agent's precision."""

    def draw() -> Noise:
        first = 0 if data.first is None else data.first["x"].shape[1]
        noise = of.draw_noise(data.reward.shape[1], first, torch.Generator().manual_seed(seed))
        for name, value in vars(noise).items():
            if value is not None:
                setattr(noise, name, value.to(of.log_alpha.dtype))
        return noise

    return draw


def sample(buffer: ReplayBuffer, spec: BatchSpec, generator: torch.Generator) -> Batch:
    """A batch of one buffer alone."""
    return buffer.gather(buffer.storage, buffer.draw(spec, generator), spec)
