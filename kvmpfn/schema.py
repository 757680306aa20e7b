"""The JSON schema of a scenario file, made of the records themselves, for editors that complete and check.

It says which keys there are, in which units and of which values. What holds between fields (spans within
memory, actors within threads, whole pages) only `Scenario` checks: where the schema errs, it lets pass.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.hosts import COSTS, Cost, Host
from kvmpfn.hosts.host import FACTORS, Figure
from kvmpfn.records import Rate, Record, Size, Time
from kvmpfn.scenario import SCHEMA, SEED_LIMIT, Region, Scenario
from kvmpfn.storms import Storm
from kvmpfn.units import MULTIPLES, SIZES, TIMES
from kvmpfn.workloads import KINDS, PHASE_KINDS, Workload

__all__ = ["scenario_schema"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}

_NUMBER = r"^\s*[0-9][0-9_]*(\.[0-9]+)?\s*"
_TIME = {"type": "string", "pattern": _NUMBER + f"({'|'.join((*TIMES, 'µs', 'μs'))})\\s*$"}
_COUNT = {"type": "string", "pattern": r"^\s*[0-9][0-9_]*\s*(faults)?\s*$"}

WRITTEN: tuple[tuple[Any, dict[str, Any], str], ...] = (
    (
        Size,
        {
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": _NUMBER + f"({'|'.join(SIZES)})?\\s*$",
        },
        f"Bytes, or a number with {', '.join(SIZES)}.",
    ),
    (Time, {"anyOf": [_TIME, {"const": 0}]}, f"A number with {', '.join(TIMES)}, or 0."),
    (
        Rate,
        {"type": "string", "pattern": _NUMBER + f"({'|'.join(MULTIPLES)})\\s*/\\s*s\\s*$"},
        "Events a second: a number with /s, k/s or M/s.",
    ),
    (Figure, {"type": ["number", "string"], "minimum": 0}, "A number, or the same as text, which is exact."),
)
"""What is written with a unit: the type, what it may look like, and the same in words."""


_CHECKS = {get_args(kind)[1].func: rule | {"description": words} for kind, rule, words in WRITTEN}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, told what our own checks take in place of the types behind them."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> dict[str, Any]:
        rule = _CHECKS.get(schema["function"]["function"])
        return dict(rule) if rule else super().function_before_schema(schema)


def scenario_schema() -> dict[str, Any]:
    """Describe scenario files, TOML or JSON.

    Returns
    -------
    dict
        A JSON schema of the dialect 2020-12. The keys' descriptions are those of the records' docstrings,
        with the units in which they are written; enumerations and defaults are the records' own.
    """
    scenario = _table(Scenario)
    keys = scenario["properties"]
    _set(keys, "host", {"anyOf": [{"enum": list(Host.names())}, _ref("Host")]})
    _set(keys, "fault_path", {"anyOf": [{"enum": list(PRESETS)}, _ref("FaultPath")]})
    region = {"anyOf": [_rule(Size), _ref("Region")]}
    _set(keys, "memory", {"anyOf": [*region["anyOf"], {"type": "array", "items": region, "minItems": 1}]})
    _set(keys, "storms", {"anyOf": [_ref("Storm"), {"type": "array", "items": _ref("Storm")}]})
    _set(keys, "workload", _one_of(KINDS))
    _set(keys, "until", {"anyOf": [{"type": "integer", "minimum": 1}, _COUNT, _TIME]})
    keys["seed"] |= {"minimum": 0, "maximum": SEED_LIMIT - 1}
    version = {"const": SCHEMA, "description": _descriptions(Scenario)["schema"]}
    tables = {cls.__name__: _table(cls) for cls in (Region, Storm, FaultPath, Cost)}
    tables["FaultPath"]["properties"]["preset"]["enum"] = list(PRESETS)
    # What makes a preset's mechanisms, and a region's size, fills them in.
    del tables["FaultPath"]["required"], tables["Region"]["required"]
    tables["Host"] = _host()
    for cls in KINDS.values():
        table = tables[cls.__name__] = _table(cls)
        table["required"] = ["kind", *table.get("required", [])]
    phase = _one_of(PHASE_KINDS)
    phases = {"anyOf": [*phase["anyOf"], {"type": "array", "items": phase, "minItems": 1}]}
    _set(tables["Phases"]["properties"], "phases", phases)
    return {
        "$schema": DIALECT,
        "title": "kvmpfn scenario",
        **scenario,
        "properties": {"schema": version, **keys},
        "$defs": tables,
    }


def _one_of(kinds: Mapping[str, type[Workload]]) -> dict[str, Any]:
    """Describe a workload of one of some kinds; a kind alone will do where it needs nothing else."""
    complete = [kind for kind, cls in kinds.items() if not _required(cls)]
    return {"anyOf": [{"enum": complete}, *(_ref(cls.__name__) for cls in kinds.values())]}


def _host() -> dict[str, Any]:
    """Describe a host: one there is data for and what differs from it, or one of the user's own in full."""
    host = _table(Host)
    figure = {"anyOf": [_rule(Figure), _ref("Cost")]}
    costs = {
        name: figure | {"description": "A plain number." if name in FACTORS else "A time in ns."}
        for name in COSTS
    }
    _set(host["properties"], "costs", {"type": "object", "properties": costs, "additionalProperties": False})
    own = {"required": list(COSTS), "additionalProperties": _ref("Cost")}
    return {
        **host,
        "required": ["name"],
        "if": {"properties": {"name": {"enum": list(Host.names())}}},
        "else": {"required": host["required"], "properties": {"costs": own}},
    }


def _table(cls: type[Record]) -> dict[str, Any]:
    """Describe one record by its own fields and docstring."""
    generated = cls.model_json_schema(schema_generator=_Generator)
    words = _descriptions(cls)
    properties = {}
    for name, rule in generated["properties"].items():
        units = []
        for one in (rule, *rule.get("anyOf", ())):
            units.append(one.pop("description", ""))
            # Behind a check of ours, pydantic leaves bounds under their own names.
            one |= {BOUNDS[key]: one.pop(key) for key in BOUNDS if key in one}
        rule.pop("title", None)
        if rule.get("default", "") is None:
            del rule["default"]
        properties[name] = rule | {"description": " ".join(filter(None, [words[name], *units]))}
    table = {
        "type": "object",
        "description": (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " "),
        "properties": properties,
        "additionalProperties": False,
    }
    return table | ({"required": required} if (required := _required(cls)) else {})


def _required(cls: type[Record]) -> list[str]:
    """List the fields that have no default."""
    return [name for name, field in cls.model_fields.items() if field.is_required()]


def _descriptions(cls: type) -> dict[str, str]:
    """Read what the docstrings of a record, and of those it derives from, say of each attribute."""
    words: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = (inspect.getdoc(base) or "").partition("Attributes\n----------\n")
        section = re.split(r"\n\n\w+\n-+\n", section)[0]
        for names, text in re.findall(r"^(\w+(?:, \w+)*) : .*\n((?: .*\n?|\n)+)", section, re.MULTILINE):
            words |= dict.fromkeys(names.split(", "), " ".join(text.split()).replace("``", ""))
    return words


def _set(properties: dict[str, Any], name: str, rule: dict[str, Any]) -> None:
    """Say better than a type what may stand in a field; its description and its default stay."""
    kept = {key: properties[name][key] for key in ("description", "default") if key in properties[name]}
    properties[name] = rule | kept


def _rule(kind: Any) -> dict[str, Any]:
    """Return what something with a unit may look like."""
    return next(rule for known, rule, _ in WRITTEN if known is kind)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
