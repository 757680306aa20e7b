"""`kvmpfn hosts` and `kvmpfn schema`: what the command line says without simulating."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from kvmpfn.cli import main
from kvmpfn.hosts import COSTS, Host
from kvmpfn.schema import scenario_schema


def call(*arguments: str) -> int:
    """Run the command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    code = exit.value.code
    assert isinstance(code, int)
    return code


def test_every_host_is_listed_with_what_is_known_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("hosts") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "host",
        "title",
        "sockets",
        "cores",
        "threads",
        "GHz",
        "read",
        "derived",
        "assumed",
    ]
    assert [line.split()[0] for line in lines] == list(Host.names())
    for line in lines:
        host = Host.load(line.split()[0])
        assert host.title in line
        *_, sockets, cores, threads, ghz, read, derived, assumed = line.split()
        assert [int(sockets), int(cores), int(threads)] == [host.sockets, host.cores, host.threads]
        assert float(ghz) == host.ghz
        assert int(assumed) == len(host.assumed)
        assert int(read) + int(derived) + int(assumed) == len(COSTS)


@pytest.mark.parametrize("name", Host.names())
def test_a_host_is_shown_cost_by_cost_as_its_files_have_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parents[1] / "kvmpfn" / "hosts"
    kernel, own = (
        tomllib.loads((folder / f"{stem}.toml").read_text(), parse_float=Decimal)
        for stem in ("_kernel", name)
    )
    written = kernel["costs"] | own["costs"]
    assert call("hosts", name, "--json") == 0
    shown = json.loads(capsys.readouterr().out, parse_float=Decimal)
    assert [row["cost"] for row in shown["costs"]] == list(COSTS)
    for row in shown["costs"]:
        cost = {"source": "", "reason": ""} | written[row.pop("cost")]
        assert row == cost
    counts = Counter(cost["status"] for cost in written.values())
    assert {key: shown[key] for key in counts} == counts
    assert call("hosts", name) == 0
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert name in title and own["title"] in title and head.endswith("source or reason")
    for line, (cost, figure) in zip(lines, ((cost, written[cost]) for cost in COSTS), strict=True):
        figures = [Decimal(text) for text in line.split()[1:4]]
        assert line.split()[0] == cost and figures == [figure[key] for key in ("value", "low", "high")]
        assert line.split()[4:6] == [figure["unit"], figure["status"]]
        assert all(figure[key] in line for key in ("source", "reason") if key in figure)


def test_an_unknown_host_is_one_line_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("hosts", "neoverse") == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "no host 'neoverse'; nearest is 'neoverse_n1'" in err


def test_neoverse_has_coherence_costs_only() -> None:
    host, other = Host.load("neoverse_n1"), Host.load("icelake_sp_2s")
    own = {name for name in COSTS if host.costs[name] != other.costs[name]} - {"memory_latency"}
    near = {f"{at}_{what}" for at in ("core", "llc", "socket", "remote") for what in ("latency", "occupancy")}
    assert own == {"own_add", "own_cas", "cas_factor", "memory_occupancy", *near}
    assert "coherence costs only" in host.title and host.smt == 1 and not host.itlb_multihit
    # 47 ns between cores; 8.5 ns is the shortest hand-off of the tight loop: 17.0 ns by 2 threads.
    assert host.cost_ps("llc_latency") == host.cost_ps("llc_occupancy") == 47_000
    assert host.costs["llc_occupancy"].low == Decimal("17.0") / 2


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schema") == 0
    assert json.loads(capsys.readouterr().out) == scenario_schema()
