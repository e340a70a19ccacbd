"""Train SheepRL's Dreamers on a task: the same as `vis-rpg dreamer`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("dreamer")
