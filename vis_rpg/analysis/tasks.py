"""Pictures of what the agent sees of every task when an episode begins."""

from pathlib import Path

import cv2

from vis_rpg.config import VisualiseTasksConfig
from vis_rpg.envs import IDS
from vis_rpg.envs.make import make_env


def main(config: VisualiseTasksConfig) -> None:
    """Draw the first observation of each task."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in config.tasks or [name for name in IDS if name != "bandit"]:
        env = make_env({"name": name}, "pixels")
        obs, _ = env.reset(seed=0)
        path = out / f"{name}.png"
        cv2.imwrite(str(path), obs[-1][..., ::-1])
        env.close()
        print(path)
