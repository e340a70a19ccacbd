"""Curves over seeds: python scripts/plot_curves.py name=maze key=coverage
'runs=[runs/maze-rpg-0,runs/maze-rpg-1]' What differs in other settings is named by hand:
'runs=[runs/maze,runs/beta]' 'labels=[beta 0.005,beta 0.05]'"""

from pathlib import Path

from omegaconf import DictConfig

from vis_rpg.analysis.curves import draw_curves, each_seed, read_curves, write_csv
from vis_rpg.cli import run
from vis_rpg.compose import require


def main(config: DictConfig) -> None:
    folder = Path(config.out)
    table, picture = folder / "curves.csv", folder / "curves.png"
    if config.runs:
        require(
            len(config.labels) in (0, len(config.runs)),
            f"labels: {len(config.labels)} for {len(config.runs)} of runs: give one for each",
        )
        seeds = [each_seed(Path(path)) for path in config.runs]
        named = [str(label) for label, own in zip(config.labels, seeds, strict=False) for _ in own]
        write_csv(table, [run for own in seeds for run in own], config.key, named)
    curves = read_curves(table)
    draw_curves(picture, curves, config.name, config.key)
    for curve in curves:
        low, high = curve.interval[:, -1]
        spread = (
            f"95% interval {low:.3f} to {high:.3f}, {curve.seeds} seeds"
            if curve.seeds > 1
            else "1 seed"
        )
        print(
            f"{curve.agent}: {config.key} {curve.mean[-1]:.3f} at {curve.step[-1]:,.0f} "
            f"interactions ({spread})"
        )
    print(f"figures: {table}\ndrawing: {picture}")


if __name__ == "__main__":
    run(main, "plot_curves")
