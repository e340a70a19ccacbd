"""Published agents: small folders of the weights that act, and a card that tells their story.

A published agent is named by its folder, by zoo:NAME where it ships with vis-rpg, or by
hf:USER/REPO where it is on the Hugging Face Hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from perception.slots.perception import SlotPerception
from vis_rpg.agent.rpg import Agent
from vis_rpg.compose import checked, did_you_mean
from vis_rpg.config import TrainConfig
from vis_rpg.errors import UserError, one_line, require
from vis_rpg.resources import ASSETS
from vis_rpg.training import checkpoint
from vis_rpg.training.chunks import digest, write_tensors

FORMAT = "vis-rpg agent 1"
MOST_BYTES = 2_000_000
"""Of weights, slot model and card together."""
AGENTS = ASSETS / "agents"
CARD, WEIGHTS, SLOTS, VIDEO = "card.json", "agent.safetensors", "slots.safetensors", "rollouts.mp4"
FILES = (CARD, WEIGHTS, SLOTS, VIDEO, "README.md")
"""All that a published agent can hold; nothing else is uploaded or fetched."""
ADDED: dict[str, Any] = {
    "collectors": 0,
    "agent.latent.every": 0,
    "agent.latent.relabel": 0.0,
    "agent.critic": "q",
    "agent.encoder": {"memory": "none"},
    "agent.policy": {"kind": "gaussian"},
    "agent.planner": None,
    "agent.replay_recent": 0,
    "agent.replay_leading": 0.0,
    "agent.reward_ramp": 0,
    "agent.gamma_rewarded": None,
    "exploration.window": 0,
    "obs.corrupt": [],
    "obs.hide": [],
    "obs.noise": 0.0,
    "perception.bonus_slots": None,
    "perception.frequencies": None,
    "perception.near": None,
    "render.shadows": False,
}
"""Settings younger than format 1, with the values under which older agents were trained."""
FOREIGN = {
    "state": ("perception.bonus_slots",),
    "slots": ("perception.bonus_slots", "perception.near"),
    "cnn": ("perception.frequencies", "perception.near"),
}
"""Those that an agent of such perception does not have."""


@dataclass
class Published:
    """What is read of a published agent."""

    card: dict[str, Any]
    config: DictConfig
    """The run's, which sees by the slot model of this folder."""
    weights: dict[str, Tensor]


def is_published(run: str | Path) -> bool:
    """Whether this names a published agent rather than a run."""
    return str(run).startswith(("zoo:", "hf:")) or (Path(run) / CARD).is_file()


def locate(run: str | Path) -> Path:
    """Return the folder of a run or of a published agent; fetch one that is on the Hub.

    Raises:
        UserError: No agent of this name ships, or the Hub does not give it.
    """
    kind, _, name = str(run).partition(":")
    if kind == "zoo":
        names = sorted(path.parent.name for path in AGENTS.glob(f"*/{CARD}"))
        there_are = f"(there are {', '.join(names)})"
        require(name in names, f"{run}: no such agent{did_you_mean(name, names)} {there_are}")
        return AGENTS / name
    if kind == "hf":
        from huggingface_hub import snapshot_download  # half a second

        try:
            return Path(snapshot_download(name, allow_patterns=list(FILES)))
        except Exception as error:  # no such repository, no network, a gate: whatever it raises
            raise UserError(f"{run} cannot be fetched ({one_line(error)})") from error
    return Path(run)


def output_folder(run: str, out: str | None) -> Path:
    """Make and return the folder of what is found out about a run.

    Args:
        run: As the user names it.
        out: None for the run's own, or runs/zoo-NAME and runs/hf-USER-REPO.
    """
    remote = run.startswith(("zoo:", "hf:"))
    own = Path("runs", run.replace(":", "-").replace("/", "-")) if remote else Path(run)
    folder = own if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(folder: Path, agent: Agent, card: Mapping[str, Any]) -> None:
    """Write an agent.

    Args:
        folder: It is made.
        agent: With the parts that act alone.
        card: JSON values; `config` and `interactions` are needed to read it.

    Raises:
        UserError: It is larger than MOST_BYTES.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, agent.state_dict())
    perception = agent.model.perception.unwrapped
    if isinstance(perception, SlotPerception):
        perception.model.save(folder / SLOTS, perception.card)
    paths = [folder / name for name in (WEIGHTS, SLOTS) if (folder / name).exists()]
    files = {path.name: digest(path) for path in paths}
    write_card(folder, {"format": FORMAT, **card, "files": files})
    size = sum(path.stat().st_size for path in (*paths, folder / CARD))
    require(
        size <= MOST_BYTES,
        f"the agent takes {size / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB of one that "
        "is published: train with a smaller agent.hidden_dim or perception",
    )


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write card.json."""
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")


def add_younger(config: DictConfig) -> None:
    """Give a config the settings that are younger than it, with the values of then, in place."""
    foreign = FOREIGN.get(str(OmegaConf.select(config, "perception.name")), ())
    for key, value in ADDED.items():
        if key not in foreign and OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, value)


def read(folder: Path) -> Published:
    """Read a published agent.

    Raises:
        UserError: A file is missing, damaged, or of another format.
    """
    way_out = "publish or fetch it again"
    try:
        card = json.loads((folder / CARD).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CARD} cannot be read ({one_line(error)}): {way_out}") from None
    require(
        isinstance(card, dict) and card.get("format") == FORMAT,
        f"{folder}: not an agent of this version ({CARD} does not say {FORMAT!r})",
    )
    try:
        int(card["interactions"])
        files, config = card["files"], OmegaConf.create(card["config"])
        changed = [name for name in {WEIGHTS, *files} if digest(folder / name) != files[name]]
        add_younger(config)
        checked(config, TrainConfig)
        weights = load_file(folder / WEIGHTS)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({one_line(error)}): {way_out}") from None
    except (SafetensorError, UserError) as error:
        raise UserError(f"{folder} is damaged ({error}): {way_out}") from None
    require(
        not changed,
        f"{folder}: {', '.join(changed)} is not as it was published (its checksum differs): "
        f"{way_out}",
    )
    if config.perception.name == "slots":
        config.perception.checkpoint = str((folder / SLOTS).absolute())
    elif config.perception.name == "cnn":
        config.perception.weights = None  # the agent's follow
        if config.perception.bonus_slots is not None:  # acting needs no bonus
            config.perception.bonus_slots, config.exploration.rnd_input = None, "slots"
    return Published(card, config, weights)


def restore(agent: Agent, published: Published, folder: Path) -> None:
    """Reduce an agent to the parts that act and give it the published weights.

    Args:
        agent: Made from the card's config.
        published: From `read`.
        folder: For messages.

    Raises:
        UserError: The weights belong to another agent, or are not finite.
    """
    try:
        agent.keep_acting_parts().load_state_dict(published.weights)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: {WEIGHTS} does not fit {CARD}: {why}") from None
    broken = [name for name, value in published.weights.items() if not value.isfinite().all()]
    require(not broken, f"{folder / WEIGHTS}: NaN or infinity in {', '.join(broken)}")


def interactions(run: Path) -> int:
    """Return how many interactions trained a run, or a published agent."""
    if is_published(run):
        return int(read(run).card["interactions"])
    return int(checkpoint.latest(run).name.removeprefix("step-"))
