"""Say what works on this machine: the same as `vis-rpg doctor`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("doctor")
