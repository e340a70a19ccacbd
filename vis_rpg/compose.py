"""Compose a config from the YAML files of a folder and overrides, checked before any work starts.

A key or an option that does not exist, a value that its dataclass in `vis_rpg.config` does not
take, a required key (`???`) without a value: each is a `UserError` of one line, with the nearest
name that exists.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vis_rpg.config import SCHEMAS
from vis_rpg.errors import UserError, nearest, require
from vis_rpg.resources import CONFIG_DIR
from vis_rpg.schema import check_settings, flatten

# Hydra raises a plain ValueError for a group whose option is no word.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)


def compose(
    overrides: Sequence[str] = (),
    config_name: str = "train",
    config_dir: Path = CONFIG_DIR,
    schema: type | None = None,
) -> DictConfig:
    """Compose the config that a command gets from these overrides.

    Args:
        overrides: Settings as on the command line, `key=value`.
        config_name: The file in `config_dir` to start from, without its ending.
        config_dir: The folder of the YAML files.
        schema: The dataclass that the config must fit; by default that of `config_name`.

    Returns:
        The config, interpolations resolved. It has the fields of its dataclass, and may be used
        as one.

    Raises:
        UserError: Something in it cannot be.
    """
    with config_files(config_dir):
        return checked(compose_unchecked(overrides, config_name), schema or SCHEMAS[config_name])


@contextmanager
def config_files(folder: Path) -> Iterator[None]:
    """Let Hydra read the YAML files of this folder."""
    require(folder.is_dir(), f"{folder}: no configs there; install vis-rpg again, or a clone of it")
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        yield


def compose_unchecked(overrides: Sequence[str], config_name: str) -> DictConfig:
    """Compose within `config_files`; raises `UserError` for what does not exist."""
    schema = SCHEMAS.get(config_name)
    overrides, rest = _split_rest(overrides, schema)
    parsed = [parse_override(word) for word in overrides]
    own = getattr(schema, "NOT_GROUPS", ())
    settings = {each.key_or_group: each.value() for each in parsed if each.key_or_group in own}
    settings |= rest
    others = [
        word for word, each in zip(overrides, parsed, strict=True) if each.key_or_group not in own
    ]
    try:
        config = hydra.compose(config_name, others)
        for key, value in settings.items():
            config[key] = value
        return config
    except COMPOSE_ERRORS as error:
        raise UserError(_explain(error, parsed, config_name)) from error


def _split_rest(
    overrides: Sequence[str], schema: type | None
) -> tuple[Sequence[str], dict[str, list[str]]]:
    """Set apart the settings of another command, which this one takes as a list."""
    name = getattr(schema, "OTHERS", None)
    if schema is None or name is None:
        return overrides, {}
    known = {own.name for own in fields(schema)}
    kept: list[str] = []
    rest: list[str] = []
    for word in overrides:
        override = parse_override(word)
        top = override.get_key_element().lstrip("+~").partition(".")[0]
        (kept if override.is_hydra_override() or top in known else rest).append(word)
    return kept, {name: rest} if rest else {}


def checked(config: DictConfig, schema: type) -> DictConfig:
    """Resolve a config and check it against its dataclass; raises `UserError`."""
    try:
        missing = [f"{key}=..." for key in sorted(OmegaConf.missing_keys(config))]
        require(not missing, f"{' '.join(missing)} must be given")
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(str(error)) from error
    check_settings(schema, cast(dict[str, Any], OmegaConf.to_container(config)))
    return config


def parse_override(word: str) -> Override:
    """What a word of the command line sets, within `config_files` also for globs."""
    hydra_state = GlobalHydra.instance()
    loader = hydra_state.config_loader() if hydra_state.is_initialized() else None
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides([word])[0]
    except HydraException as error:
        hint = (
            "quote a value that has brackets, commas, spaces or equals signs: 'key=\"value\"'"
            if "=" in word
            else "write key=value"
        )
        raise UserError(f"{word}: not a setting that can be read; {hint}") from error


def split_launcher(overrides: Sequence[str], multirun: bool) -> tuple[list[str], list[str]]:
    """Split overrides into settings and Hydra's own, which say where the jobs of a sweep run.

    Called within `config_files`.

    Raises:
        UserError: It is not a sweep, or the setting of Hydra's has no effect here.
    """
    settings: list[str] = []
    launcher: list[str] = []
    for override in map(parse_override, overrides):
        line, key = str(override.input_line), override.get_key_element().lstrip("+~")
        if not override.is_hydra_override():
            settings.append(line)
            continue
        require(
            key in ("hydra/launcher", "hydra.sweep.dir") or key.startswith("hydra.launcher."),
            f"{line}: this setting of Hydra's has no effect here; hydra/launcher, "
            "hydra.launcher.* and hydra.sweep.dir have",
        )
        require(multirun, f"{line}: launchers run the jobs of a sweep; add --multirun")
        launcher.append(line)
    return settings, launcher


def sweep(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """Return the overrides of each job: one, or every combination of the values of a sweep.

    Called within `config_files`.
    """
    values = []
    for override in map(parse_override, overrides):
        key = override.get_key_element()
        require(
            multirun or not override.is_sweep_override(),
            f"{override.input_line}: several values; write {key}=[...] for a list, or add "
            "--multirun to run each",
        )
        values.append(
            [f"{key}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override()
            else [str(override.input_line)]
        )
    return [list(job) for job in itertools.product(*values)]


def config_groups(parent: str = "") -> dict[str, list[str]]:
    """Every config group with its options, within `config_files`."""
    loader = GlobalHydra.instance().config_loader()
    found: dict[str, list[str]] = {}
    for name in loader.list_groups(parent):
        path = f"{parent}/{name}".lstrip("/")
        if path != "hydra":
            inner = config_groups(path)
            options = [
                option
                for option in loader.get_group_options(path)
                if f"{path}/{option}" not in inner
            ]
            found |= ({path: options} if options else {}) | inner
    return found


def groups_of(config_name: str) -> dict[str, list[str]]:
    """The config groups that a config chooses from, with their options, within `config_files`."""
    chosen = hydra.compose(config_name, return_hydra_config=True).hydra.runtime.choices
    names = {group.partition("/")[0] for group in chosen}
    return {
        group: options
        for group, options in config_groups().items()
        if group.partition("/")[0] in names
    }


def _explain(error: Exception, parsed: Iterable[Override], config_name: str) -> str:
    """Explain in one line why a config does not compose.

    It names the first setting that does not exist, with the nearest one that does.
    """
    try:
        groups = groups_of(config_name)
    except COMPOSE_ERRORS as deeper:
        return _short(deeper)
    good: list[str] = []
    others: list[Override] = []
    for override in parsed:
        options = groups.get(override.key_or_group)
        if options is None:
            others.append(override)
            continue
        chosen = override.value()
        for option in chosen if isinstance(chosen, list) else [chosen]:
            if str(option) not in options:
                return (
                    f"{override.input_line}: no such option{did_you_mean(option, options)} "
                    f"(there are {', '.join(options)})"
                )
        good.append(str(override.input_line))
    try:
        keys = _keys(OmegaConf.to_container(hydra.compose(config_name, good)))
    except COMPOSE_ERRORS as deeper:
        return _short(deeper)
    for override in others:
        key = override.get_key_element().lstrip("+~")
        if not override.is_add() and key not in keys:
            top = ", ".join(sorted({key.partition(".")[0] for key in keys} | set(groups)))
            near = did_you_mean(key, [*keys, *groups]) or f"; there are {top}"
            return f"{override.input_line}: no such setting{near}"
    return _short(error)


def _short(error: BaseException) -> str:
    return f"{error} {error.__cause__ or ''}".partition("Config search path")[0].strip()


def _keys(values: Any) -> list[str]:
    """The dotted names of every setting and section."""
    settings = flatten(values)
    sections = {key[: dot.start()] for key in settings for dot in re.finditer(r"\.", key)}
    return sorted(settings.keys() | sections)


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """Return the nearest name as a question, or nothing."""
    return nearest(word, names, 0.6, "; did you mean {}?")
