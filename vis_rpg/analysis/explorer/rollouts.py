"""Rollouts by z, and episodes of training: pictures and slots of each step, and their worth."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from perception.evaluation.diagnostics import frame_measures
from perception.slots.model import SlotOutput
from perception.slots.perception import SlotPerception
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.rpg import Agent
from vis_rpg.analysis.diagnosis import Episode, critic_values, record_episode
from vis_rpg.analysis.evaluation import episode_seed, play
from vis_rpg.analysis.explorer.seeds import rounded
from vis_rpg.analysis.explorer.slots import colours, find_failures, glance, sheet
from vis_rpg.analysis.explorer.states import ZView, in_words
from vis_rpg.analysis.video import MOST_FRAMES, SlotOverlay, frames_per_second, render
from vis_rpg.envs.make import object_positions, task_of
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError
from vis_rpg.training.episodes import RecordedEpisode, Replay

COUNT = 16
"""Values of z."""
CLOSE = 1e-3
"""Difference of a reward from the recorded one that still counts as the same."""
QUALITY = 70
"""Of pictures, as WebP counts it."""
MOST_BYTES = 11_000_000
"""Of all pictures together, before base64 makes them longer by a third."""


class Film(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Keeps what an episode looks like, and what it pays.

    Args:
        env: The environment.
        agent: Its slots are drawn where it sees by slots.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], agent: Agent) -> None:
        super().__init__(env)
        perception = agent.model.perception.unwrapped
        self.model = perception.model if isinstance(perception, SlotPerception) else None
        self.every = math.ceil(task_of(env).episode_length / MOST_FRAMES)
        self.no_pictures: str | None = None
        """Why the environment has none."""
        self.reel = Reel()

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        obs, info = self.env.reset(**kwargs)
        self.reel = Reel()
        self.overlay = SlotOverlay(self.model) if self.model else None
        self.before: SlotOutput | None = None
        self._expose(obs, info, last=False)
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.reel.rewards.append(float(reward))
        self._expose(obs, info, last=terminated or truncated)
        return obs, float(reward), terminated, truncated, info

    def _expose(self, obs: np.ndarray, info: dict[str, Any], last: bool) -> None:
        reel = self.reel
        # Every frame, kept or not: slots carry over from frame to frame.
        output = self._measure(obs) if self.overlay else None
        reel.success.append(bool(info["success"]))
        reel.positions.append(object_positions(info))
        if self.no_pictures is None and (len(reel.rewards) % self.every == 0 or last):
            try:
                reel.pictures.append(_webp(render(self.env)))
            except UserError as error:
                self.no_pictures = str(error)
                return
            reel.steps.append(len(reel.rewards))
            if output is not None:
                reel.slots.append(_webp(sheet(obs[-1], output)))

    def _measure(self, obs: np.ndarray) -> SlotOutput:
        """Encode the newest frame, and keep how far its slots are to be trusted."""
        assert self.overlay is not None and self.model is not None
        output = self.overlay.encode(obs)
        self.reel.measures.append(frame_measures(self.model, obs[-1:], output, self.before))
        self.reel.frames.append(_webp(glance(obs[-1], output)))
        self.before = output
        return output


@dataclass
class Reel:
    """An episode of T steps."""

    rewards: list[float] = field(default_factory=list)
    """(T,)."""
    success: list[bool] = field(default_factory=list)
    """(T + 1,)."""
    positions: list[np.ndarray] = field(default_factory=list)
    """(T + 1) of (N, 2 or 3), of the objects of interest, world units."""
    steps: list[int] = field(default_factory=list)
    """Of the observations that have a picture."""
    pictures: list[bytes] = field(default_factory=list)
    slots: list[bytes] = field(default_factory=list)
    """One `sheet` for each picture, or none."""
    frames: list[bytes] = field(default_factory=list)
    """Of an agent that sees by slots the frame of each step beside its masks, (T + 1,)."""
    measures: list[dict[str, np.ndarray]] = field(default_factory=list)
    """Likewise what tells failures of its slots, (T + 1,)."""


@dataclass
class Rollout:
    """One z in action."""

    z: np.ndarray
    """(Z,); the first one where z is drawn anew within episodes."""
    reel: Reel
    series: dict[str, list[float]]
    """By name, (T,): of the observation and action of each step."""
    errors: dict[str, np.ndarray]
    """Likewise of the world model's predictions, squared, as long as the episode lasts."""
    states: np.ndarray
    """Latent states, (T + 1, S), or (0, 0)."""
    began: int | None = None
    """Interactions of the run at the start of an episode of training; None for a rollout by z."""


@dataclass
class Rollouts:
    """All of them."""

    rollouts: list[Rollout]
    """Those by z first."""
    no_pictures: str | None
    fps: int

    @property
    def state_variance(self) -> float:
        """Of latent states, the unit of the world model's errors; NaN without a world model."""
        states = np.concatenate([own.states for own in self.rollouts])
        return float(states.var(0).mean()) if states.size else np.nan


def record(actor: Actor, env: gymnasium.Env, seed: int, count: int) -> Rollouts:
    """Play an episode by mean actions for each of `count` z, all from one start.

    Of categories each is played once, if there are no more of them; without z, starts differ
    instead.

    Args:
        actor: Of one environment; its generator is seeded anew.
        env: The environment.
        seed: Of the start and of z.
        count: Rollouts at most.
    """
    agent, film = actor.agent, Film(env, actor.agent)
    actor.generator.manual_seed(seed)
    values: Sequence[torch.Tensor | None] = [None] * count
    categorical = agent.config.latent.kind == "categorical" and not agent.redraws
    if categorical and agent.space.dim <= count:
        values = list(torch.eye(agent.space.dim, device=actor.device))
    rollouts = []
    for index, given in enumerate(tqdm(values, desc="rolling out", unit="episode")):
        start = episode_seed(seed, 0 if agent.space.dim else index)
        rollouts.append(roll_out(actor, film, start, given))
    return Rollouts(rollouts, film.no_pictures, frames_per_second(env))


def roll_out(actor: Actor, film: Film, start: int, given: torch.Tensor | None) -> Rollout:
    """Play an episode by mean actions.

    Args:
        actor: Of one environment.
        film: The environment.
        start: Determines the start.
        given: (Z,); None draws z from π(z|s₁).
    """
    if can_judge(actor.agent):
        episode = record_episode(actor, film, start, explore=False, z=given)
        return _judged(actor.agent, episode, film.reel)
    for step, _ in enumerate(play(actor, film, start, given)):
        if step == 1:
            z = actor.z[0].clone()
    return _not_judged(z.cpu().numpy(), film.reel)


def replay(
    actor: Actor, env: gymnasium.Env, episodes: Sequence[RecordedEpisode]
) -> tuple[list[Rollout], int]:
    """Play episodes of training again, for what the agent of now makes of them.

    Args:
        actor: Of one environment.
        env: The environment.
        episodes: Of the agent's run.

    Returns:
        Those that are paid as they were when they were recorded, and how many are not: the
        simulator computes otherwise here.
    """
    agent, rollouts = actor.agent, []
    for episode in tqdm(episodes, desc="replaying", unit="episode"):
        film = Film(Replay(env, episode), agent)
        if can_judge(agent):
            z, actions = (
                torch.as_tensor(own, device=actor.device) for own in (episode.z[0], episode.action)
            )
            played = record_episode(actor, film, 0, z=z, actions=actions)
            rollout = _judged(agent, played, film.reel)
        else:
            film.reset(seed=0)
            for action in episode.action:
                film.step(action)
            rollout = _not_judged(episode.z[0], film.reel)
        rewards = np.array(film.reel.rewards)
        if rewards.shape == episode.reward.shape and np.allclose(
            rewards, episode.reward, rtol=CLOSE, atol=CLOSE
        ):
            rollout.began = episode.began
            rollouts.append(rollout)
    return rollouts, len(episodes) - len(rollouts)


def can_judge(agent: Agent) -> bool:
    """Whether the agent has critics, bonus and p_φ, of a z that stays the same in an episode."""
    return hasattr(agent, "p_phi") and agent.config.name != "sac" and not agent.redraws


def _not_judged(z: np.ndarray, reel: Reel) -> Rollout:
    return Rollout(z, reel, {"reward": reel.rewards}, {}, np.zeros((0, 0)))


def _judged(agent: Agent, episode: Episode, reel: Reel) -> Rollout:
    horizons = sorted({1, int(agent.config.horizon)})
    names = [f"model error, {n} step{'s' * (n > 1)}" for n in horizons]
    errors = [model_error(agent, episode, n).cpu().numpy() for n in horizons]
    states = episode.s.cpu().numpy()
    judged = judge(agent, episode)
    return Rollout(
        episode.z.cpu().numpy(), reel, judged, dict(zip(names, errors, strict=True)), states
    )


@torch.no_grad()
def model_error(agent: Agent, episode: Episode, steps: int) -> torch.Tensor:
    """Return the mean squared error of the state that the world model predicts `steps` ahead.

    Args:
        agent: With its world model.
        episode: T steps.
        steps: H, along the actions that were taken and without a look at what is between.

    Returns:
        (T - H + 1,), at the step from which it predicts; (0,) for a shorter episode.
    """
    if len(episode.a) < steps:
        return episode.s.new_zeros(0)
    actions = episode.a.unfold(0, steps, 1).permute(2, 0, 1)  # (H, T - H + 1, A)
    states, _ = agent.model.unroll(episode.s[:-steps], actions)
    return (states[-1] - episode.s[steps:]).square().mean(-1)


@torch.no_grad()
def judge(agent: Agent, episode: Episode) -> dict[str, list[float]]:
    """Return what each step is paid, Q and log p_φ(z|s,a), (T,), of those parts that there are."""
    found = {"reward": episode.task_reward}
    if agent.rnd is not None:
        found["bonus"] = episode.bonus
    found["Q"] = critic_values(agent, episode)
    if agent.space.dim:
        z = episode.z.expand(len(episode.a), -1)
        found["log p(z|s,a)"] = agent.p_phi.log_prob(z, episode.s[:-1], episode.a)
    return {name: values.tolist() for name, values in found.items()}


def thin(reels: Sequence[Reel], most: int = MOST_BYTES) -> None:
    """Drop every second picture of all, until they fit into `most` or first and last are left."""
    while (
        sum(len(own) for reel in reels for own in (*reel.pictures, *reel.slots)) > most
        and max(len(reel.steps) for reel in reels) > 2
    ):
        for reel in filter(lambda reel: reel.steps, reels):
            kept = sorted({*range(0, len(reel.steps), 2), len(reel.steps) - 1})
            reel.steps = [reel.steps[i] for i in kept]
            reel.pictures = [reel.pictures[i] for i in kept]
            reel.slots = [reel.slots[i] for i in kept] if reel.slots else []


def rollout_data(
    recorded: Rollouts, view: ZView, task: Task, variance: float, most: int = MOST_BYTES
) -> dict[str, Any]:
    """Return what the player shows.

    Args:
        recorded: The rollouts.
        view: Of z.
        task: Theirs.
        variance: Of latent states, of which the world model's errors are shares.
        most: Bytes of all pictures.
    """
    rollouts = recorded.rollouts
    thin([rollout.reel for rollout in rollouts], most)
    z = np.stack([rollout.z for rollout in rollouts])
    totals = np.array([sum(rollout.reel.rewards) for rollout in rollouts])
    if view.kind == "none":
        places, axes = np.stack([np.arange(1.0, 1 + len(z)), totals], 1), ["rollout", "return"]
    elif view.kind == "categorical":
        places, axes = np.stack([z.argmax(1) + 1.0, totals], 1), ["category of z", "return"]
    else:
        places, axes = view.places(z), ["z along the first axis", "z along the second axis"]
    described = zip(rollouts, in_words(z, view), view.colours(z), totals, places, strict=True)
    return {
        "axes": axes,
        "legend": view.legend(z.shape[1]),
        "fps": recorded.fps,
        "no_pictures": recorded.no_pictures,
        "rollouts": [
            {
                "began": rollout.began,
                "z": words,
                "colour": colour,
                "place": rounded(place, 4),
                "total": rounded([total])[0],
                "success": rollout.reel.success[-1],
                "succeeds": rollout.reel.success,
                "length": len(rollout.reel.rewards),
                "path": path(rollout.reel, task),
                "series": {name: rounded(own) for name, own in rollout.series.items()}
                | {name: rounded(own / variance, 3) for name, own in rollout.errors.items()},
                "steps": rollout.reel.steps,
                "pictures": [_address(own) for own in rollout.reel.pictures],
                "slots": [_address(own) for own in rollout.reel.slots],
            }
            for rollout, words, colour, total, place in described
        ],
    }


def failures(rollouts: Sequence[Rollout]) -> dict[str, Any] | None:
    """Return the colours of slots, and of how many frames those where they fail; None without."""
    reels = [rollout.reel for rollout in rollouts]
    if not reels[0].measures:
        return None
    slots = reels[0].measures[0]["presence"].shape[1]
    cases = find_failures([reel.measures for reel in reels])
    for case in cases:
        case["picture"] = _address(reels[case["rollout"]].frames[case["step"]])
    frames = sum(len(reel.frames) for reel in reels)
    return {"colours": colours(slots), "frames": frames, "cases": cases}


def path(reel: Reel, task: Task) -> list[list[list[float]]]:
    """Return x and y, each (T + 1,), in the task's plane, for each object of interest."""
    places = np.stack(reel.positions)[..., list(task.plane)]  # (T + 1, N, 2)
    return [[rounded(own[:, 0], 4), rounded(own[:, 1], 4)] for own in places.transpose(1, 0, 2)]


def _webp(picture: np.ndarray) -> bytes:
    _, encoded = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    return encoded.tobytes()


def _address(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
