"""Draw learning curves over seeds: the same as `vis-rpg plot-curves`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("plot-curves")
