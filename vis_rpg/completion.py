"""A script by which bash completes commands, settings and what may be chosen for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vis_rpg.compose import config_files, groups_of
from vis_rpg.config import SCHEMAS
from vis_rpg.schema import choices, shown

FLAGS = "--help --cfg --multirun --config-dir --config-path --config-name"
SCRIPT = """\
# Completion of vis-rpg: eval "$(vis-rpg --completion)" in ~/.bashrc
_vis_rpg() {
  local line="${COMP_LINE:0:COMP_POINT}" words=""
  local current="${line##* }" command="${COMP_WORDS[1]}"
  if [[ ${line#* } != *" "* ]]; then words="@COMMANDS"; else
    case "$command" in
@CASES
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  # bash completes what follows the last equals sign.
  [[ $current == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%=*}="}")
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  return 0
}
complete -o default -F _vis_rpg vis-rpg
"""


def settings(config: str) -> list[str]:
    """List the settings of a config with what may be chosen for them, within `config_files`."""
    options = groups_of(config)
    words = [f"{group}={option}" for group in options for option in options[group]]
    for key, chosen in choices(SCHEMAS[config]):
        if key not in options:
            words += [f"{key}={shown(each)}" for each in chosen] or [f"{key}="]
    return words


def script(commands: Mapping[str, str], config_dir: Path) -> str:
    """Write the script.

    Args:
        commands: The config that each command starts from.
        config_dir: The folder of the YAML files.
    """
    cases = []
    with config_files(config_dir):
        for command, config in commands.items():
            words = settings(config)
            if other := getattr(SCHEMAS[config], "OTHERS", None):  # it takes those of another one
                words += settings(other)
            cases.append(f'      {command}) words="{" ".join([*dict.fromkeys(words), FLAGS])}" ;;')
    every = " ".join([*commands, "--help", "--version", "--completion"])
    return SCRIPT.replace("@COMMANDS", every).replace("@CASES", "\n".join(cases))
