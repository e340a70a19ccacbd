"""Write a page about a run: the same as `vis-rpg explore`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("explore")
