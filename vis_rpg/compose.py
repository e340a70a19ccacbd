"""Compose a config from YAML defaults and overrides, checked against the defaults before any work
starts.

A key or an option that does not exist, a value of another kind than its default (null as a default
takes any; a text may become null), a key that is required (`???`) and missing: each is a
`UserError` of one line, with the nearest name that exists.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from vis_rpg.errors import UserError
from vis_rpg.resources import CONFIG_DIR

VERSION_BASE = "1.3"
# Hydra raises a plain ValueError for a group whose option is no word.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
MISSING = "???"


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds; the message names the thing, the
    value, and the way out."""
    if not condition:
        raise UserError(message)


def compose(
    overrides: Sequence[str] = (), config_name: str = "train", config_dir: Path = CONFIG_DIR
) -> DictConfig:
    """The config that a script would get from these overrides, checked and resolved. Raises
    `UserError`."""
    return resolve(compose_checked(list(overrides), config_name, config_dir))


def parse_override(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        hint = (
            "quote a value that has brackets, commas, spaces or equals signs: 'key=\"value\"'"
            if "=" in word
            else "write key=value"
        )
        raise UserError(f"{word}: not a setting that can be read; {hint}") from error


def compose_checked(overrides: list[str], config_name: str, config_dir: Path) -> DictConfig:
    """Compose and compare with the defaults of the chosen groups; raises `UserError` for the first
    mistake."""
    parsed = [parse_override(word) for word in overrides]
    require(
        config_dir.is_dir(),
        f"{config_dir}: no configs there; install vis-rpg from a clone with pip install -e .",
    )
    with hydra.initialize_config_dir(str(config_dir), version_base=VERSION_BASE):
        try:
            cfg = hydra.compose(config_name, overrides, return_hydra_config=True)
            groups = set(cfg.hydra.runtime.choices)
            choices = [
                str(o.input_line) for o in parsed if _key(o) in groups or o.is_hydra_override()
            ]
            defaults = (
                _defaults(config_name, config_dir, tuple(choices))
                if len(choices) < len(parsed)
                else cfg
            )
        except COMPOSE_ERRORS as error:
            raise UserError(_explain(error, parsed, config_name)) from error
    del cfg.hydra
    check_kinds(
        cfg, defaults, lacking="~{key}: a setting that is needed; give it another value instead"
    )
    return cfg


def check_kinds(
    cfg: DictConfig, defaults: DictConfig, section: str = "", lacking: str = "{key} is missing"
) -> None:
    """Raise `UserError` for the first key of `defaults` that `cfg` lacks, or whose value is of
    another kind.

    Args:
        cfg: The settings to check.
        defaults: Settings with the same keys.
        section: The dotted name of both, for the message.
        lacking: The message about a key that `cfg` lacks.
    """
    prefix = f"{section}." if section else ""
    values = dict(_entries(cfg, prefix))
    for key, default in _entries(defaults, prefix):
        require(key in values, lacking.format(key=key))
        _check_kind(key, default, values[key])


# jobs of a sweep mostly choose the same groups, and composing takes a tenth of a second
@functools.cache
def _defaults(config_name: str, config_dir: Path, choices: tuple[str, ...]) -> DictConfig:
    """The config of these choices of groups alone, where Hydra has been told of `config_dir`."""
    return hydra.compose(config_name, list(choices))


def resolve(cfg: DictConfig) -> DictConfig:
    missing = [key for key, value in _entries(cfg) if value == MISSING]
    require(not missing, f"{' '.join(f'{key}=...' for key in missing)} must be given")
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise UserError(str(error)) from error
    seed = cfg.get("seed", 0)
    require(
        not isinstance(seed, int) or 0 <= seed < 2**32,
        f"seed={seed}: must lie between 0 and {2**32 - 1}",
    )
    return cfg


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def _entries(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values: {} for a section, MISSING where one is required, ... where it
    does not resolve by itself."""
    for key in cfg:
        name = prefix + str(key)
        try:
            value = MISSING if OmegaConf.is_missing(cfg, key) else cfg[key]
            value = (
                OmegaConf.to_container(value, resolve=True)
                if isinstance(value, ListConfig)
                else value
            )
        except InterpolationResolutionError:
            value = ...
        if isinstance(value, DictConfig):
            yield name, {}
            yield from _entries(value, f"{name}.")
        else:
            yield name, value


def _check_kind(key: str, default: Any, value: Any) -> None:
    """Raise `UserError` where a value is of another kind than its default."""
    if default in (None, ..., MISSING) or value in (..., MISSING):
        return
    wanted, hint = "", ""
    if isinstance(default, bool):
        wanted = "" if isinstance(value, bool) else "true or false"
    elif isinstance(default, int | float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number:
            wanted = "a number" if isinstance(default, float) else "a whole number"
        elif isinstance(default, int) and isinstance(value, float):
            wanted, hint = (
                "a whole number",
                f"; write {key}={int(value)}" if value.is_integer() else "",
            )
    elif isinstance(default, str):
        wanted = "" if isinstance(value, str | None) else "text"
        hint = f"; write '{key}=\"{value}\"' if it is meant as one"
    elif isinstance(default, list):
        wanted = "" if isinstance(value, list) else "a list"
        for i, entry in enumerate(value if default and not wanted else ()):
            _check_kind(f"{key}[{i}]", default[0], entry)
    elif not isinstance(value, dict):
        wanted = "a section with keys of its own"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    require(not wanted, f"{key}={shown}: expected {wanted}{hint}")


def _explain(error: Exception, parsed: Iterable[Override], config_name: str) -> str:
    """One line for a config that does not compose: the first setting that names nothing, with the
    nearest name that exists."""
    groups = _groups()
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
                    f"{override.input_line}: no such option{_nearest(str(option), options)} "
                    f"(there are {', '.join(options)})"
                )
        good.append(str(override.input_line))
    try:
        cfg = hydra.compose(config_name, good)
    except COMPOSE_ERRORS as deeper:
        return _short(deeper)
    keys = [key for key, _ in _entries(cfg)]
    for override in others:
        if (
            not override.is_hydra_override()
            and not override.is_add()
            and _key(override) not in keys
        ):
            top = ", ".join(sorted({key.partition(".")[0] for key in keys} | set(groups)))
            return (
                f"{override.input_line}: no such "
                f"setting{_nearest(_key(override), [*keys, *groups]) or f'; there are {top}'}"
            )
    return _short(error)


def _short(error: BaseException) -> str:
    return f"{error} {error.__cause__ or ''}".partition("Config search path")[0].strip()


def _groups(parent: str = "") -> dict[str, list[str]]:
    """Every config group with its options."""
    loader = GlobalHydra.instance().config_loader()
    found: dict[str, list[str]] = {}
    for name in loader.list_groups(parent):
        path = f"{parent}/{name}".lstrip("/")
        if path != "hydra":
            options = [
                option
                for option in loader.get_group_options(path)
                if f"{path}/{option}" not in loader.list_groups(path)
            ]
            found |= ({path: options} if options else {}) | _groups(path)
    return found


def _nearest(word: str, names: Iterable[str]) -> str:
    """The nearest name as a question, or nothing. The last part of a dotted key counts nearly as
    much as the whole."""

    def likeness(name: str) -> float:
        tail = SequenceMatcher(None, word.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        return max(SequenceMatcher(None, word, name).ratio(), 0.9 * tail)

    best = max(names, key=likeness, default="")
    return f"; did you mean {best}?" if likeness(best) >= 0.6 else ""
