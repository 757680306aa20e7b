"""Hold the engine to the oracle: every step, every number; a difference is printed with both logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpfn.core.names import (
    CLIENT_FIELDS,
    COUNTERS,
    DISTANCES,
    PARTS,
    RMW_CONTEXTS,
    RMW_LINES,
    STEPS,
    VCPU_FIELDS,
)
from oracle.found import Found, Row
from oracle.world import simulate as oracle

if TYPE_CHECKING:
    from kvmpfn.results import Run
    from kvmpfn.scenario import Scenario

AROUND = 12
MOST_TRIES = 63
"""The last row of the engine's table of attempts holds all larger numbers."""


def difference(scenario: Scenario) -> str:
    """Run both; return where they differ, or an empty text."""
    from kvmpfn.simulator import simulate

    found = oracle(scenario)
    run = simulate(scenario, log=len(found.log) + 1000)
    return compare_logs(found.log, engine_log(run)) + compare_numbers(found, run)


def engine_log(run: Run) -> list[Row]:
    """Return the engine's step log in the oracle's form."""
    return [(t, actor, STEPS[step], gfn, start) for t, actor, step, gfn, start in run.arrays["log"].tolist()]


def compare_logs(expected: list[Row], got: list[Row]) -> str:
    """Print both logs side by side around the first step that differs."""
    first = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
    if first is None:
        if len(expected) == len(got):
            return ""
        first = min(len(expected), len(got))
    lines = [f"step {first} differs: oracle left, engine right (time, actor, step, gfn, last start)"]
    for i in range(max(0, first - AROUND), first + AROUND):
        a, b = (_row(log[i]) if i < len(log) else "the end" for log in (expected, got))
        lines.append(f"{' ' if a == b else '>'} {a:<52} {b}")
    return "\n".join(lines) + "\n"


def _row(row: Row) -> str:
    time, actor, step, gfn, start = row
    return f"{time:>13} {actor:>3} {step:<16} {gfn:>7} {start:>7}"


def numbers(found: Found) -> dict[str, Any]:
    """Return all that the oracle counted, by name."""
    flat: dict[str, Any] = {"died": found.died}
    for i, vm in enumerate(found.vms):
        flat |= {f"vm {i} {name}": vm.counters[name] for name in COUNTERS}
        flat |= {f"vm {i} rmw.{c}.{line}": vm.rmw[c][line] for c in RMW_CONTEXTS for line in RMW_LINES}
        flat |= {f"vm {i} transfers.{name}": vm.transfers[name] for name in DISTANCES}
        flat |= {f"vm {i} parts.{name}": vm.parts[name] for name in PARTS}
        _only("counters", vm.counters, COUNTERS)
        _only("parts", vm.parts, PARTS)
        _only("transfers", vm.transfers, DISTANCES)
        for context in RMW_CONTEXTS:
            _only(context, vm.rmw[context], RMW_LINES)
    for i, vcpu in enumerate(found.vcpus):
        flat |= {f"vcpu {i} {name}": vcpu[name] for name in VCPU_FIELDS}
    for i, client in enumerate(found.clients):
        flat |= {f"client {i} {name}": client[name] for name in CLIENT_FIELDS}
    flat |= {f"latency bucket {bucket}": n for bucket, n in found.hist.items() if n}
    for tries, n in found.tries.items():
        name = f"{min(tries, MOST_TRIES)} tries"
        flat[name] = flat.get(name, 0) + n
    return flat


def engine_numbers(run: Run) -> dict[str, Any]:
    """Return the same of the engine."""
    a = {name: array.tolist() for name, array in run.arrays.items()}
    flat: dict[str, Any] = {"died": list(run.died)}
    for i in range(len(a["counters"])):
        flat |= {f"vm {i} {name}": n for name, n in zip(COUNTERS, a["counters"][i], strict=True)}
        for c, row in zip(RMW_CONTEXTS, a["rmw"][i], strict=True):
            flat |= {f"vm {i} rmw.{c}.{line}": n for line, n in zip(RMW_LINES, row, strict=True)}
        flat |= {f"vm {i} transfers.{name}": n for name, n in zip(DISTANCES, a["transfers"][i], strict=True)}
        flat |= {f"vm {i} parts.{name}": n for name, n in zip(PARTS, a["parts"][i], strict=True)}
    for i, row in enumerate(a["vcpus"]):
        flat |= {f"vcpu {i} {name}": n for name, n in zip(VCPU_FIELDS, row, strict=True)}
    for i, row in enumerate(a["clients"]):
        flat |= {f"client {i} {name}": n for name, n in zip(CLIENT_FIELDS, row, strict=True)}
    flat |= {f"latency bucket {i}": n for i, n in enumerate(a["hist"]) if n}
    flat |= {f"{i} tries": n for i, n in enumerate(a["tries"]) if n}
    return flat


def compare_numbers(found: Found, run: Run) -> str:
    """Print the numbers that differ."""
    expected, got = numbers(found), engine_numbers(run)
    differ = [name for name in {**expected, **got} if expected.get(name, 0) != got.get(name, 0)]
    return "".join(f"{name}: oracle {expected.get(name, 0)}, engine {got.get(name, 0)}\n" for name in differ)


def _only(what: str, counted: dict[str, int], names: tuple[str, ...]) -> None:
    """Refuse a number that has no name in the engine's results."""
    unknown = sorted(set(counted) - set(names))
    assert not unknown, f"{what} that the results do not have: {unknown}"
