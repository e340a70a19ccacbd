"""Publish a trained agent: the same as `vis-rpg publish`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("publish")
