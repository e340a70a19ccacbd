"""Train the slot model online, without a gradient from the agent or a bonus for its drift.

Training goes in rounds. A copy of the slot model takes some steps of object discovery on frames
from replay. It then re-encodes all of replay, a few observations with each update and in order of
arrival, as each begins from the slots of the one before; nothing uses these slots until it has
caught up. Meanwhile a copy of the RND's predictor learns to give for the new slots of a scene what
the predictor gives for the old ones, so that familiar scenes stay familiar. Then all of it takes
over at once: the slot model, the stored slots, the slots that acting carries, the predictor, and
the mean by which the bonus is normalised.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from perception.discovery.online import SlotLearner
from perception.slots.perception import SlotPerception, next_name, stored_slots
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.rpg import Agent
from vis_rpg.seeding import restore_generator
from vis_rpg.training.replay_buffer import ReplayBuffer

DISCOVERY_STEPS = 50
"""Steps of discovery in a round."""
BATCH_SIZE = 16
"""Frames of a discovery step, half of them treated as first ones."""
ROWS = 32
"""Observations re-encoded with one update, few enough not to stall it."""
FIT_STEPS = 200
"""Steps that fit the new predictor, one with each update."""
FIT_BATCH_SIZE = 128
"""Observations of a fitting step."""
FIT_LR = 1e-3
"""Adam's rate. If too low, the mean of the bonus still follows, but not which scenes are newer."""
SAMPLE = 4096
"""Observations by which the normaliser's mean is shifted."""
COLUMNS = ("slots", "coordinates")


class OnlineSlotTraining:
    """Trains the slot model of one agent.

    `step` must run with an update, while nobody acts or writes to replay.

    Args:
        agent: Its perception is a `SlotPerception` with `online`.
        actor: Carries slots from one step to the next.
        replay: Stores frames too.
        every: Interactions between two steps of discovery.
        envs: Interactions between two calls of `step`.
        seed: Seeds draws from replay.
    """

    def __init__(
        self, agent: Agent, actor: Actor, replay: ReplayBuffer, every: int, envs: int, seed: int
    ) -> None:
        assert isinstance(agent.model.perception, SlotPerception)
        self.agent, self.actor, self.replay = agent, actor, replay
        self.every, self.envs = every, envs
        self.perception = agent.model.perception
        self.rnd = agent.rnd if agent.rnd_input is None else None  # another input does not drift
        self.device = agent.log_alpha.device
        self.generator = torch.Generator().manual_seed(seed)
        self.learner = SlotLearner(self.perception.model)
        if self.rnd is not None:
            self.predictor = copy.deepcopy(self.rnd.predictor).requires_grad_(True)
            self.optimizer = torch.optim.Adam(self.predictor.parameters(), FIT_LR)
        self.since = self.learned = self.fitted = self.rounds = 0
        self.start = self.cursor = 0
        """Row numbers: where re-encoding began, and where it continues."""
        self.loss = torch.tensor(torch.nan)
        """Loss of the last discovery step."""

    def step(self) -> bool:
        """Do the work that goes with one update.

        Returns:
            Whether stored slots have been replaced.
        """
        if self.learned < DISCOVERY_STEPS:
            self.since += self.envs
            while self.since >= self.every and self.learned < DISCOVERY_STEPS:
                self.since -= self.every
                self._discover()
            if self.learned == DISCOVERY_STEPS:
                self.start = self.cursor = self.replay.first_held
                if not all(value.isfinite().all() for value in self.learner.model.parameters()):
                    # Discard a round that diverged.
                    self.learner, self.learned = SlotLearner(self.perception.model), 0
        elif not self._encode_again():
            return False
        elif self.rnd is not None and self.fitted < FIT_STEPS:
            self._fit()
        else:
            self._take_over()
            return True
        return False

    # A round --------------------------------------------------------------------------------------

    def _discover(self) -> None:
        """Take one step of discovery on frames from replay."""
        numbers, storage = self._draw(BATCH_SIZE), self.replay.storage
        at = self._places(numbers)
        previous = storage.obs["slots"][storage.prev[at]].to(self.device).float()
        is_first = (torch.arange(BATCH_SIZE) % 2 == 0) | self._begins(
            numbers, self.replay.first_held
        )
        frames = storage.obs["frame"][at].to(self.device)
        self.loss = self.learner.learn(frames, previous, is_first.to(self.device))
        self.learned += 1

    @torch.no_grad()
    def _encode_again(self) -> bool:
        """Encode the next rows by the new model; return whether it has caught up."""
        storage, head = self.replay.storage, self.replay.write_ptr
        oldest = self.replay.first_held
        if self.cursor < oldest:  # overwritten before they were reached
            self.start = self.cursor = oldest
        end = min(head, self.cursor + max(ROWS, 4 * self.envs))
        numbers = torch.arange(self.cursor, end)
        at, parents = self._places(numbers), self._parents(numbers)
        is_first = self._begins(numbers, max(self.start, oldest))
        while self.cursor < end:
            begin = self.cursor - int(numbers[0])
            # Rows whose parent is encoded in this very call wait for the next pass.
            waits = (parents[begin:] >= self.cursor) & ~is_first[begin:]
            stop = begin + int(waits.nonzero()[0]) if waits.any() else len(numbers)
            now = at[begin:stop]
            before = storage.obs[next_name("slots")][storage.prev[now]]
            frames = storage.obs["frame"][now].to(self.device)
            first = is_first[begin:stop].to(self.device)
            output = self.learner.model(frames, before.to(self.device).float(), first)
            for name, value in stored_slots(output).items():
                storage.obs[next_name(name)][now] = value.to(self.replay.device)
            self.cursor += stop - begin
        return self.cursor == head

    def _fit(self) -> None:
        """Take one step of the new predictor towards the old one's residual, scene by scene."""
        assert self.rnd is not None
        if self.fitted == 0:
            self.predictor.load_state_dict(self.rnd.predictor.state_dict())
            self.optimizer.state.clear()
        at = self._places(self._draw(FIT_BATCH_SIZE))
        with torch.no_grad():
            wanted = self.rnd.residual(self._rnd_input(at), self.rnd.predictor)
        residual = self.rnd.residual(self._rnd_input(at, by_next=True), self.predictor)
        loss = ((residual - wanted) ** 2).sum(-1).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.fitted += 1

    @torch.no_grad()
    def _take_over(self) -> None:
        """Replace the slot model, the slots in replay and in acting, and the predictor."""
        obs = self.replay.storage.obs
        if self.rnd is not None:
            at = self._places(self._draw(SAMPLE))
            before = self.rnd.prediction_error(self._rnd_input(at))
            pairs = zip(self.rnd.predictor.parameters(), self.predictor.parameters(), strict=True)
            for own, new in pairs:
                own.copy_(new)
            after = self.rnd.prediction_error(self._rnd_input(at, by_next=True))
            self.rnd.statistics.shift_mean(before, after)
        newest = (self.replay.cursor % self.replay.capacity).to(self.replay.device)
        for name in COLUMNS:
            obs[name].copy_(obs[next_name(name)])
            self.actor.state.previous[name].copy_(obs[name][newest])
        self.perception.model.load_state_dict(self.learner.model.state_dict())
        self.actor.state.hidden["slots"].copy_(obs["slots"][newest])
        self.learned = self.fitted = 0
        self.rounds += 1

    # Reading replay -------------------------------------------------------------------------------

    def _draw(self, count: int) -> Tensor:
        """Draw numbers (count,) of rows uniformly from all that replay holds."""
        low, high = self.replay.first_held, self.replay.write_ptr
        return torch.randint(low, high, (count,), generator=self.generator)

    def _places(self, numbers: Tensor) -> Tensor:
        """Return the indices of rows of these numbers (B,), on replay's device."""
        return (numbers % self.replay.capacity).to(self.replay.device)

    def _begins(self, numbers: Tensor, oldest: int) -> Tensor:
        """Whether an episode, or its remainder from row `oldest` on, begins at rows (B,)."""
        parents = self._parents(numbers)
        return (parents == numbers) | (parents < oldest)

    def _parents(self, numbers: Tensor) -> Tensor:
        """Return the numbers (B,) of the rows before these; the same where an episode begins."""
        at = self._places(numbers)
        return numbers - ((at - self.replay.storage.prev[at]) % self.replay.capacity).cpu()

    def _rnd_input(self, at: Tensor, by_next: bool = False) -> Tensor:
        """Read the RND's input (B, M) at rows (B,), as the old or new slot model encoded it."""
        obs = self.replay.storage.obs
        sequence = {}
        for name in self.replay.sampled:
            column = next_name(name) if by_next and name in COLUMNS else name
            value = obs[column][at].to(self.device)
            sequence[name] = torch.stack([value] * self.perception.history)
        return self.agent.read_rnd_input(sequence)[0]

    # Checkpoints ----------------------------------------------------------------------------------

    def _learning(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Return the modules trained here with their optimizers."""
        learning: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {
            "model": (self.learner.model, self.learner.optimizer)
        }
        if self.rnd is not None:
            learning["predictor"] = self.predictor, self.optimizer
        return learning

    def state_dict(self) -> dict[str, Any]:
        """Return all state that is not in replay, for a checkpoint."""
        learning = self._learning().items()
        return {
            "counts": {name: getattr(self, name) for name in COUNTS},
            "loss": self.loss,
            "generator": self.generator.get_state(),
            "weights": {name: module.state_dict() for name, (module, _) in learning},
            "optimizers": {name: adam.state_dict()["state"] for name, (_, adam) in learning},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, value in state["counts"].items():
            setattr(self, name, value)
        self.loss = state["loss"]
        restore_generator(self.generator, state["generator"])
        for name, (module, adam) in self._learning().items():
            module.load_state_dict(state["weights"][name])
            document, moments = adam.state_dict(), state["optimizers"][name]
            # JSON has turned the indices into strings.
            document["state"] = {int(index): dict(own) for index, own in moments.items()}
            adam.load_state_dict(document)


COUNTS = ("since", "learned", "fitted", "rounds", "start", "cursor")
