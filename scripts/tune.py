"""Search settings by Ray Tune: the same as `vis-rpg tune`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("tune")
