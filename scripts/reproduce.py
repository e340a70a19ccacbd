"""Reproduce a figure or table of the paper: the same as `vis-rpg reproduce`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("reproduce")
