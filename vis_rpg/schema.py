"""Checks settings against dataclasses.

A field of such a class names the kind, the choices and the bounds of a value, and the docstring
that follows it the meaning and unit. A kind is bool, int, float or str, with `Bounds` where
`Annotated`; a Literal of choices; list[...]; dict; another dataclass, for a section; a union of
sections, which their `name` tells apart, or of plain kinds; or one of these or None. A class with
`OPEN = True` takes other keys too.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from vis_rpg.errors import UserError, nearest, require

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a section with keys of its own",
}


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest number that is accepted, the least itself unless `above`."""

    low: float
    high: float = float("inf")
    above: bool = False

    def __str__(self) -> str:
        if self.high < float("inf"):
            return f"lie between {self.low} and {self.high}"
        return f"be {'above' if self.above else 'at least'} {self.low}"


Count = Annotated[int, Bounds(0, above=True)]
Positive = Annotated[float, Bounds(0, above=True)]
Share = Annotated[float, Bounds(0, 1)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]


def check_settings(schema: type, values: Mapping[str, Any], section: str = "") -> None:
    """Check a section against its dataclass.

    Args:
        schema: The dataclass.
        values: Plain values by key, sections as mappings.
        section: Its dotted name, for messages.

    Raises:
        UserError: A setting is missing, unknown, of another kind, no choice, or out of bounds.
    """
    prefix, kinds = f"{section}." if section else "", _kinds(schema)
    for own in fields(schema):
        if own.name in values:
            _check_value(prefix + own.name, kinds[own.name], values[own.name])
        elif own.default is own.default_factory is MISSING:
            raise UserError(f"{prefix}{own.name} is missing: it is needed")
    for key in () if getattr(schema, "OPEN", False) else sorted(values.keys() - kinds.keys()):
        raise UserError(f"{prefix}{key}: no such setting; there are {', '.join(sorted(kinds))}")


def describe(schema: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted key and the meaning of every setting, sections before what is in them."""
    docs: dict[str, str] = {}
    for parent in reversed([kind for kind in schema.__mro__ if is_dataclass(kind)]):
        declared = cast(ast.ClassDef, ast.parse(dedent(inspect.getsource(parent))).body[0])
        for pair in pairwise(declared.body):
            match pair:
                case (ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(doc)))):
                    docs[name] = " ".join(doc.split())
    for own in fields(schema):
        options = _options(_kinds(schema)[own.name])
        sections = [kind for kind in options if isinstance(kind, type) and is_dataclass(kind)]
        about = docs.get(own.name) or " Or ".join(inspect.getdoc(kind) or "" for kind in sections)
        choices = get_args(options[0]) if get_origin(options[0]) is Literal else ()
        told = [f"({' | '.join(choices)})"] if len(choices) > 1 else []
        yield prefix + own.name, " ".join([*about.split(), *told])
        for section in sections:
            yield from describe(section, f"{prefix}{own.name}.")


def choices(schema: type, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The dotted key of every setting, and what may be chosen where that is a list."""
    for name, kind in _kinds(schema).items():
        for option in _options(kind):
            if isinstance(option, type) and is_dataclass(option):
                yield from choices(option, f"{prefix}{name}.")
            elif option is not NoneType:
                listed = get_args(option) if get_origin(option) is Literal else ()
                yield prefix + name, (True, False) if option is bool else listed


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted key."""
    if not isinstance(values, dict):
        return {prefix.removesuffix("."): values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in flatten(inner, f"{prefix}{name}.").items()
    }


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _kinds(schema: type) -> dict[str, Any]:
    hints = get_type_hints(schema, include_extras=True)
    return {own.name: hints[own.name] for own in fields(schema)}


def _options(kind: Any) -> tuple[Any, ...]:
    """The kinds that a union is of."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _check_value(key: str, kind: Any, value: Any) -> None:
    if value is None and NoneType in _options(kind):
        return
    [kind, *others] = [option for option in _options(kind) if option is not NoneType]
    if is_dataclass(kind) and isinstance(value, dict):
        if others:
            sections = (kind, *others)
            named = {name: each for each in sections for name in get_args(_kinds(each)["name"])}
            _check_choice(f"{key}.name", tuple(named), value.get("name"))
            kind = named[value["name"]]
        check_settings(kind, value, key)
        return
    if get_origin(kind) is Literal:
        _check_choice(key, get_args(kind), value)
        return
    kind = next((each for each in others if type(value) is (get_origin(each) or each)), kind)
    kind, bounds = get_args(kind) if get_origin(kind) is Annotated else (kind, None)
    plain = dict if is_dataclass(kind) else get_origin(kind) or kind
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = number if plain is float else isinstance(value, plain) and number is (plain is int)
    hint = ""
    if plain is str and not key.endswith("]"):
        hint = f"; write '{key}=\"{shown(value)}\"' if it is meant as one"
    if plain is int and isinstance(value, float) and value.is_integer():
        hint = f"; write {key}={int(value)}"
    plains = [plain, *(get_origin(each) or each for each in others)]
    words = " or ".join(WORDS[each] for each in dict.fromkeys(plains) if each in WORDS)
    require(good, f"{key}={shown(value)}: expected {words}{hint}")
    if bounds:
        above = value > bounds.low if bounds.above else value >= bounds.low
        require(above and value <= bounds.high, f"{key}={value}: must {bounds}")
    for i, entry in enumerate(value if plain is list else ()):
        _check_value(f"{key}[{i}]", get_args(kind)[0], entry)


def _check_choice(key: str, choices: tuple[str, ...], value: Any) -> None:
    one = f"choose one of {', '.join(choices)}{nearest(value, choices, 0.0)}"
    require(value in choices, f"{key}={value}: {one}")
