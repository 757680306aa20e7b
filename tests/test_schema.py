"""The JSON schema of scenario files, and the version that every stored file names."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from made_up import make_run
from oracle import cases
from test_cli import SCENARIO
from test_scenario import BASE, scenarios

import kvmpfn as kp
from kvmpfn import workloads
from kvmpfn.hosts import COSTS, Host
from kvmpfn.results import SchemaError, load
from kvmpfn.scenario import Scenario
from kvmpfn.schema import scenario_schema
from kvmpfn.units import InputError

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = scenario_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def valid(fields: Any) -> bool:
    """Say whether the schema takes a scenario as JSON has it."""
    return bool(VALIDATOR.is_valid(json.loads(json.dumps(fields))))


def tables(schema: Any = SCHEMA) -> Iterator[dict[str, Any]]:
    """Every part of a schema that describes an object's keys."""
    if isinstance(schema, list):
        for one in schema:
            yield from tables(one)
    if isinstance(schema, dict):
        if "additionalProperties" in schema and "properties" in schema:
            yield schema
        for one in schema.values():
            yield from tables(one)


def test_it_is_a_schema_and_says_what_every_key_is() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    found = list(tables())
    assert len(found) == 1 + 5 + 1 + len(workloads.KINDS)  # the scenario, its records, a host's costs
    for table in found:
        assert table["additionalProperties"] is False
        assert all(rule["description"].strip() for rule in table["properties"].values())
    # Nothing is left of pydantic's own words, which validators pass over.
    assert not re.search(r'"(ge|le|gt|lt|title)": (?!"kvmpfn scenario"|\{)', json.dumps(SCHEMA))


def test_keys_and_units_are_those_of_the_records() -> None:
    assert list(SCHEMA["properties"]) == ["schema", *Scenario.model_fields]
    storm = SCHEMA["$defs"]["Storm"]["properties"]
    assert list(storm) == list(kp.Storm.model_fields)
    assert all(unit in storm["span"]["description"] for unit in ("KiB", "GiB"))
    assert "ns" in storm["hold"]["description"] and "k/s" in storm["rate"]["description"]
    costs = SCHEMA["$defs"]["Host"]["properties"]["costs"]["properties"]
    assert list(costs) == list(COSTS) and costs["exit"]["description"] == "A time in ns."


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(scenarios)
def test_every_scenario_has_it(scenario: Scenario) -> None:
    VALIDATOR.validate(json.loads(scenario.to_json()))
    VALIDATOR.validate(tomllib.loads(scenario.to_toml()))


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(cases.scenarios(cases.THEMES["mixed"]))
def test_so_has_every_small_one(scenario: Scenario) -> None:
    VALIDATOR.validate(json.loads(scenario.to_json()))


def test_so_have_the_readmes_and_the_files(repo_root: Path) -> None:
    VALIDATOR.validate(tomllib.loads(SCENARIO))
    VALIDATOR.validate(json.loads(BASE.to_json()))
    for file in sorted((repo_root / "data").rglob("*.toml")):
        if "schema" in (fields := tomllib.loads(file.read_text())):
            VALIDATOR.validate(fields)
    readme = (repo_root / "README.md").read_text()
    source = re.search(r"^s = kp\.Scenario\(.*?^\)$", readme, re.MULTILINE | re.DOTALL)
    assert source
    names: dict[str, Any] = {"kp": kp}
    exec(source[0], names)
    VALIDATOR.validate(json.loads(names["s"].to_json()))


OWN = Host.load("milan_2s").replace(name="mine").plain()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"memory": "16GiB", "workload": "demand_paging", "until": "3_000 faults"},
        {"memory": ["1GiB", {"size": 4096}, {"backing": "thp"}], "until": 7},
        {"storms": [{"arrival": "closed_loop", "think": 0, "hold": "1.5 µs"}], "until": "10ms"},
        {"storms": {"arrival": "poisson", "rate": "50 k/s", "vm": 0}, "seed": 2**64 - 1},
        {"host": {"name": "milan_2s", "sockets": 4, "costs": {"exit": "7.25ns", "own_add": 3}}},
        {"host": OWN},
        {"fault_path": {"reference": "none"}, "pml": False},
        {"workload": {"kind": "replay", "vcpus": [[[0, 1, 0]], []]}, "vcpus": 2},
        {"workload": "zipf", "until": "1ms"},
        {"workload": {"kind": "hot_cold", "execs": 0.5, "drift": "2MiB", "accesses": 9}},
        {"workload": {"kind": "phases", "phases": ["strided", {"kind": "uniform"}]}, "until": 7},
        {"workload": {"kind": "phases", "phases": "demand_paging", "repeat": 2}},
    ],
)
def test_what_it_takes_a_scenario_takes(fields: dict[str, Any]) -> None:
    VALIDATOR.validate(json.loads(json.dumps(fields)))
    Scenario(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"vcpu": 3},
        {"schema": 2},
        {"schema": True},
        {"vcpus": 0},
        {"vcpus": "3"},
        {"memory": []},
        {"memory": "16GB"},
        {"memory": [{"siz": "1GiB"}]},
        {"memory": [{"backing": "anom"}]},
        {"memory": [{"folio_order": 10}]},
        {"host": "icelake"},
        {"host": {"name": "milan_2s", "costs": {"exits": 1}}},
        {"host": {"name": "milan_2s", "costs": {"exit": -1}}},
        {"host": OWN | {"costs": {name: cost for name, cost in OWN["costs"].items() if name != "exit"}}},
        {"fault_path": "v6.2"},
        {"fault_path": {"refrence": "held"}},
        {"fault_path": {"preset": "v6.1", "reference": "hold"}},
        {"workload": "unifrm"},
        {"workload": "replay"},
        {"workload": {"order": "random"}},
        {"workload": {"kind": "uniform", "write": 1}, "until": 7},
        {"workload": {"kind": "zipf", "exponent": 9}, "until": "1ms"},
        {"workload": "phases"},
        {"workload": {"kind": "phases", "phases": []}},
        {"workload": {"kind": "phases", "phases": [{"kind": "phases", "phases": ["strided"]}]}},
        {"workload": {"kind": "uniform", "writes": 2}, "until": 7},
        {"storms": [{"rate": "1k/s"}]},
        {"storms": [{"arrival": "poison", "rate": "1k/s"}]},
        {"storms": [{"arrival": "poisson", "rate": "5k"}]},
        {"storms": [{"arrival": "poisson", "rate": "5k/s", "hold": 4}]},
        {"storms": [{"arrival": "poisson", "rate": "5k/s", "limit": 0}]},
        {"until": "10 parsecs"},
        {"until": 0},
        {"seed": -1},
        {"levels": 3},
        {"dirty_logging": 1},
    ],
)
def test_what_it_refuses_a_scenario_refuses(fields: dict[str, Any]) -> None:
    assert not valid(fields)
    with pytest.raises(InputError):
        Scenario(**fields)


@pytest.mark.parametrize("version", [0, 2, "1", True, 1.0])
def test_a_scenario_of_another_schema_is_one_line(version: Any, tmp_path: Path) -> None:
    # Of one number or text, JSON and TOML are the same.
    for name, text in (("s.json", f'{{"schema": {json.dumps(version)}}}'), ("s.toml", json.dumps(version))):
        file = tmp_path / name
        file.write_text(text if name == "s.json" else f"schema = {text}")
        with pytest.raises(InputError) as raised:
            Scenario.load(file)
        assert str(raised.value) == f"{file}: schema: {version!r} is not known to this version; nearest is 1"


def test_every_stored_file_names_its_schema(tmp_path: Path) -> None:
    assert json.loads(BASE.to_json())["schema"] == tomllib.loads(BASE.to_toml())["schema"] == 1
    make_run().to_parquet(tmp_path / "run.parquet")
    metadata = pq.read_schema(tmp_path / "run.parquet").metadata
    assert metadata[b"kvmpfn.schema"] == b"1"
    assert json.loads(metadata[b"kvmpfn.scenario"])["schema"] == 1


def rewrite(file: Path, **changes: bytes | None) -> None:
    """Change metadata of a run's file, or take it away."""
    table = pq.read_table(file)
    metadata = table.schema.metadata | {f"kvmpfn.{key}".encode(): text for key, text in changes.items()}
    kept = {key: text for key, text in metadata.items() if text is not None}
    pq.write_table(table.replace_schema_metadata(kept), file)


def test_a_run_of_another_schema_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "run.parquet"
    run = make_run()
    run.to_parquet(file)
    rewrite(file, schema=b"2")
    with pytest.raises(SchemaError) as raised:
        load(file)
    message = (
        f"{file}: schema: 2, written by kvmpfn {run.version}, is not known to this version; nearest is 1"
    )
    assert str(raised.value) == message
    rewrite(file, schema=None)
    with pytest.raises(InputError, match=r"without a schema; simulate again$"):
        load(file)
    rewrite(file, schema=b"1", scenario=run.scenario.to_json().replace('"schema":1', '"schema":2').encode())
    with pytest.raises(InputError) as raised:
        load(file)
    assert str(raised.value) == f"{file}: schema: 2 is not known to this version; nearest is 1"


def test_a_store_does_not_replace_a_run_of_another_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Scenario] = []

    def simulate(scenario: Scenario, progress: bool) -> kp.Run:
        made.append(scenario)
        return make_run(scenario)

    monkeypatch.setattr("kvmpfn.simulator.simulate", simulate)
    scenario = Scenario(memory="64MiB", vcpus=4)
    kp.compare(scenario, vcpus=[4], replicas=1, executor="serial", store=tmp_path)
    (file,) = tmp_path.iterdir()
    assert pq.read_schema(file).metadata[b"kvmpfn.schema"] == b"1" and len(made) == 1
    rewrite(file, schema=b"2")
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"schema: 2, written by .* nearest is 1$"):
        kp.compare(scenario, vcpus=[4], replicas=1, executor="serial", store=tmp_path)
    assert file.read_bytes() == before and len(made) == 1
    # One from before there was a schema is made again.
    rewrite(file, schema=None)
    kp.compare(scenario, vcpus=[4], replicas=1, executor="serial", store=tmp_path)
    assert load(file).scenario == scenario and len(made) == 2
