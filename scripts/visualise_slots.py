"""See the slots: python scripts/visualise_slots.py run=runs/x, or model=assets/slots/block_push.safetensors task=block_push"""

from __future__ import annotations

from pathlib import Path

import cv2
import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig

from perception.background import nearest_background
from perception.collection import wander
from perception.drawing import draw_paths, enlarge, grid, overlay, reconstruction, sheet
from perception.scores import see_episodes
from perception.slot_model import SlotModel
from perception.slots import SlotPerception
from vis_rpg.build import load
from vis_rpg.cli import require, run
from vis_rpg.envs.factory import make_env, task_of
from vis_rpg.envs.rendering import FRAME
from vis_rpg.errors import UserError
from vis_rpg.video import write_mp4


def episode_of_run(folder: Path, seed: int) -> tuple[SlotModel, np.ndarray]:
    """The slot model of a run, and one episode (T, H, W, 3) of its agent."""
    actor, env = load(folder, seed=seed)
    perception = actor.agent.model.perception
    if not isinstance(perception, SlotPerception):
        raise UserError(f"run={folder} sees without slots: give a run with perception=slots")
    obs, _ = env.reset(seed=seed)
    actor.reset()
    frames, done = [obs[-1]], False
    while not done:
        obs, _, terminated, truncated, _ = env.step(actor.act(obs))
        frames.append(obs[-1])
        done = terminated or truncated
    return perception.model, np.stack(frames)


def episode_of_task(path: Path, env: gymnasium.Env, seed: int) -> tuple[SlotModel, np.ndarray]:
    """A slot model, and one episode (T, H, W, 3) of random actions."""
    try:
        model, _ = SlotModel.load(path, (FRAME, FRAME))
    except ValueError as error:
        raise UserError(str(error)) from None
    return model, wander(env, 1, task_of(env).episode_length, seed).frames[0]


def main(config: DictConfig) -> None:
    require((config.run is None) != (config.model is None), "give one of run=<folder of a run> and model=<slot model>")
    require(config.columns >= 2, f"columns={config.columns}: at least 2")
    if config.run is not None:
        model, frames = episode_of_run(Path(config.run), config.seed)
    else:
        model, frames = episode_of_task(Path(config.model), make_env(config.task, "pixels", config.seed), config.seed)
    folder = Path(config.out or config.run or "runs/slots")
    folder.mkdir(parents=True, exist_ok=True)

    sights = see_episodes(model, frames[None])
    shown = np.linspace(0, len(frames) - 1, config.columns).round().astype(int)
    save(folder / "slots.png", sheet([frames[t] for t in shown], [sights[t] for t in shown]))
    coordinates = torch.cat([s.coordinates for s in sights]).numpy()
    images = [torch.as_tensor(x).permute(0, 3, 1, 2).float() for x in (frames[:1], model.backgrounds)]
    floor = nearest_background(*images)[0].permute(1, 2, 0).byte().numpy()
    save(folder / "slot_paths.png", draw_paths(floor, coordinates))
    print(f"frames, masks, reconstruction: {folder / 'slots.png'}\nslot paths: {folder / 'slot_paths.png'}")
    if config.video:
        pictures = [
            grid([[enlarge(image, 4) for image in (frame, overlay(frame, sight.decoded.masks[0].numpy()), reconstruction(sight))]])
            for frame, sight in zip(frames, sights, strict=True)
        ]
        write_mp4(folder / "slots.mp4", pictures)
        print(f"video: {folder / 'slots.mp4'}")


def save(path: Path, image: np.ndarray) -> None:
    """Write an RGB picture."""
    require(cv2.imwrite(str(path), image[..., ::-1]), f"{path} cannot be written")


if __name__ == "__main__":
    run(main, config_name="visualise_slots")
