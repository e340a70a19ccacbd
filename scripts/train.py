"""Train: python scripts/train.py task=block_push obs=pixels seed=0 steps=20000 preset=cpu
out=runs/x device=auto"""

from omegaconf import DictConfig

from vis_rpg.cli import run
from vis_rpg.training.trainer import Trainer


def main(config: DictConfig) -> None:
    trainer = Trainer(config)
    for one, summary in zip(trainer.runs, trainer.run(), strict=True):
        shown = {key: summary[key] for key in ("steps", "return", "success", "coverage")}
        print(f"done: {one.out}/summary.json {shown}")


if __name__ == "__main__":
    run(main)
