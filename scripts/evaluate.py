"""Evaluate a run and record rollouts: the same as `vis-rpg evaluate`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("evaluate")
