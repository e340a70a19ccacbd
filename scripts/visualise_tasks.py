"""Draw what the agent sees of every task when an episode begins: python scripts/visualise_tasks.py
[--out assets/tasks] [task ...]"""

import argparse
import sys
from pathlib import Path

import cv2

from vis_rpg.envs import IDS
from vis_rpg.envs.make import make_env
from vis_rpg.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tasks",
        nargs="*",
        metavar="task",
        help="words of task=...; all that can be seen unless given",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("assets/tasks"), help="folder of the pictures"
    )
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out {arguments.out}: {error.strerror}")
    for name in arguments.tasks or [name for name in IDS if name != "bandit"]:
        try:
            env = make_env({"name": name}, "pixels")
        except UserError as error:
            sys.exit(f"error: {error}")
        obs, _ = env.reset(seed=0)
        path = arguments.out / f"{name}.png"
        cv2.imwrite(str(path), obs[-1][..., ::-1])
        env.close()
        print(path)


if __name__ == "__main__":
    main()
