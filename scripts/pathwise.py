"""Train and draw agents through known dynamics: the same as `vis-rpg pathwise`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("pathwise")
