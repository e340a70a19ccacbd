"""Learn to see the objects of a task, without labels: the same as `vis-rpg discover-objects`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("discover-objects")
