"""Measure speed: the same as `vis-rpg benchmark`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("benchmark")
