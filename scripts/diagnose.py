"""Diagnose a run: the same as `vis-rpg diagnose`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("diagnose")
