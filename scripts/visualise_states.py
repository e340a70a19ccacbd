"""Draw the states that a run visited over training, by z and by interaction: python
scripts/visualise_states.py run=runs/x"""

from pathlib import Path

from omegaconf import DictConfig

from vis_rpg.analysis.explored_states import save_states
from vis_rpg.cli import run


def main(config: DictConfig) -> None:
    print(f"visited states: {save_states(Path(config.run))}")


if __name__ == "__main__":
    run(main, "visualise_states")
