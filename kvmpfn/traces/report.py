"""What is said of a recording: how it was read, what happened, what cannot be known, and how to replay it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpfn.traces.follow import WHERE
from kvmpfn.units import PAGE, InputError, format_size, format_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from kvmpfn.traces.summaries.counters import Counters
    from kvmpfn.traces.trace import Trace

__all__ = ["describe", "lacks", "summary"]


def lacks(trace: Trace) -> list[str]:
    """Say what a recording cannot tell, and which event would.

    Parameters
    ----------
    trace : Trace
        The recording.
    """
    saw = trace.saw
    faults, calls = trace.faults, trace.invalidations
    some = len(faults) > 0
    unsure = (faults["outcome"] == "unknown").any()
    found = {
        "how faults ended: no return of the handler (pf_ret)": some and not saw("pf_ret"),
        "which faults were spurious and which lost a race: no return of the handler (pf_ret)": (
            unsure and saw("kvm_mmu_set_spte", "kvm_tdp_mmu_spte_changed") and not saw("pf_ret")
        ),
        "which faults were retried: no kvm_mmu_set_spte or kvm_tdp_mmu_spte_changed": (
            unsure and not saw("kvm_mmu_set_spte", "kvm_tdp_mmu_spte_changed")
        ),
        "where retries were caught: no gup, faultin_ret, stale_ret and map_ret": (
            (faults["where"] == WHERE[-1]).any()
        ),
        "level and pfn: no kvm_mmu_spte_requested": some and faults["level"].isna().all(),
        "reads from writes: no kvm_exit, and error codes that could be any machine's": (
            (faults["kind"] == "unknown").any()
        ),
        "the time between faults without the faults: neither pf_ret nor kvm_entry": (
            some and not saw("pf_ret", "kvm_entry")
        ),
        "invalidations: no kvm_unmap_hva_range": not len(calls),
        "how long invalidations hold: no inv_start_ret and inv_end": (
            len(calls) > 0 and calls["hold_ps"].isna().all()
        ),
        "which gfns invalidations have, and which pages are devices': no memslots": trace.memslots is None,
    }
    return [what for what, missing in found.items() if missing]


def describe(trace: Trace, vm: int = 0) -> dict[str, Any]:
    """Return all that `summary` says, as plain values.

    Parameters
    ----------
    trace : Trace
        The recording.
    vm : int
        Which VM is fitted; 0 is the one with most faults.
    """
    if not trace.used and trace.statistics is not None:
        return _numbers(trace.statistics)
    faults, accesses, calls = trace.faults, trace.accesses, trace.invalidations
    seconds = trace.duration_ps / 1e12
    retried = faults[faults["outcome"] == "RETRY"]
    cells = (retried["where"].astype("str") + "." + retried["why"].astype("str")).str.rstrip(".")
    try:
        one = trace.fit(vm=vm)
        fitted: dict[str, Any] = {
            "vcpus": one.vcpus,
            "memory": format_size(one.pages * PAGE),
            "backing": one.backing,
            "pattern": one.places.pattern,
            "workload": one.workload().plain(),
            "storms": [storm.plain() for storm in one.clients],
        }
    except InputError as error:
        fitted = {"why_not": error.message}
    return {
        "name": trace.name,
        "kernel": trace.kernel,
        "mmu": trace.mmu,
        "events": trace.used,
        "seconds": seconds,
        "lines": trace.lines,
        "skipped": trace.skipped,
        "lost": trace.lost,
        "losses_of_unknown_size": trace.lost_unknown,
        "guessed": trace.guessed,
        "vms": trace.vms.reset_index().to_dict("records"),
        "helper_threads": int(trace.threads["vm"].isna().sum()),
        "faults": len(faults),
        "faults_per_second": len(faults) / seconds if seconds else None,
        "outcomes": _counts(faults["outcome"]),
        "inferred": int(faults["inferred"].sum()),
        "retries": _counts(cells),
        "accesses": len(accesses),
        "kinds": _counts(accesses["kind"]),
        "levels": _counts(faults["level"].dropna().map(lambda level: f"at level {level}")),
        "places": _counts(
            faults["place"]
            .map({"slot": "in a memslot", "outside": "in none", "mmio": "of a device"}.get)
            .dropna()
        ),
        "pages": int(trace.vms["pages"].sum()),
        "think_us": _quantiles(accesses["think_ps"]),
        "invalidations": len(calls),
        "invalidations_per_second": len(calls) / seconds if seconds else None,
        "span_pages": _middle(calls["span"], PAGE),
        "hold_us": _middle(calls["hold_ps"], 10**6),
        "unknown": lacks(trace),
        "fit": fitted,
    }


def summary(trace: Trace, vm: int = 0) -> str:
    """Say in some lines what a recording holds.

    Parameters
    ----------
    trace : Trace
        The recording.
    vm : int
        Which VM is fitted; 0 is the one with most faults.
    """
    if not trace.used and trace.statistics is not None:
        return _tables(trace.statistics)
    found = describe(trace, vm)
    losses = [
        text
        for number, text in (
            (trace.lost, f"{trace.lost:,d} events lost"),
            (trace.lost_unknown, f"{trace.lost_unknown:,d} losses of unknown size"),
        )
        if number
    ]
    length = format_time(trace.duration_ps)
    machine = "" if trace.mmu == "unknown" else f", {trace.mmu}"
    lines = [
        f"{trace.name}: {trace.used:,d} events in {length}, a kernel like {trace.kernel}{machine}",
        "",
        f"lines: {trace.lines:,d}, of which {trace.used:,d} used, {sum(trace.skipped.values()):,d} skipped; "
        f"{' and '.join(losses) or 'no loss told'}",
        *_listed("skipped", trace.skipped),
        *_listed("guessed", trace.guessed),
        "",
    ]
    for row in found["vms"]:
        size = f"{row['faults']:,d} faults on {row['pages']:,d} pages"
        lines.append(f"VM {row['vm']}: {row['vcpus']} vCPUs, {size}")
    lines.append(f"other threads: {found['helper_threads']}")
    lines.append(f"faults: {found['faults']:,d}{_rate(found['faults_per_second'])}{_of(found['outcomes'])}")
    if found["inferred"]:
        lines.append(f"  how {found['inferred']:,d} of them ended is inferred")
    if found["retries"]:
        share = 100 * sum(found["retries"].values()) / found["faults"]
        lines.append(f"retries: {share:.2f} % of the faults{_of(found['retries'])}")
    if found["accesses"]:
        lines.append(f"accesses: {found['accesses']:,d}{_of(found['kinds'])}")
        if found["think_us"]:
            p10, p50, p90 = found["think_us"]
            lines.append(f"  time before each: {p50:g} us (median; 10 and 90 %: {p10:g} and {p90:g} us)")
    if found["levels"]:
        lines.append(f"mapped{_of(found['levels'])}")
    if found["places"]:
        lines.append(f"pages{_of(found['places'])}")
    lines.append(f"invalidations: {found['invalidations']:,d}{_rate(found['invalidations_per_second'])}")
    if found["span_pages"] is not None:
        held = "" if found["hold_us"] is None else f", hold {found['hold_us']:g} us"
        lines.append(f"  medians: span {found['span_pages']:g} pages{held}")
    if found["unknown"]:
        lines += ["", "cannot be known:", *(f"  {what}" for what in found["unknown"])]
    fitted = found["fit"]
    if "why_not" in fitted:
        return "\n".join([*lines, "", f"no fit: {fitted['why_not']}"])
    lines += [
        "",
        f"fitted: {fitted['vcpus']} vCPUs, {fitted['memory']} ({fitted['backing']})",
        f"  {_fields(fitted['workload'])}",
        *(f"  storm: {_fields(storm)}" for storm in fitted["storms"]),
        "",
        "replay:",
        f"  kvmpfn trace {trace.name} --replay replay.toml      # access by access",
        f"  kvmpfn trace {trace.name} --fit fit.toml --vcpus 4x --storm 10x",
        "  kvmpfn compare fit.toml fault_path=v6.1,v6.16",
    ]
    return "\n".join(lines)


def _numbers(counters: Counters) -> dict[str, Any]:
    """Return what a summary holds, as plain values."""
    return {
        "name": counters.name,
        "source": counters.source,
        "kernel": counters.kernel,
        "lines": counters.lines,
        "skipped": counters.skipped,
        "lost": counters.lost,
        "warnings": list(counters.warnings),
        "tables": [
            {
                "source": table.source,
                "label": table.label,
                "facts": table.facts,
                "values": [value._asdict() for value in table.values],
                "totals": table.totals,
            }
            for table in counters.tables
        ],
    }


def _tables(counters: Counters) -> str:
    """Say in some lines what a summary holds: a line a counter, with all that was measured of it."""
    lost = f"{counters.lost:,d} events lost" if counters.lost else "no loss told"
    lines = [
        f"{counters.name}: {counters.source}, no events",
        "",
        f"lines: {counters.lines:,d}, of which {counters.used:,d} used, "
        f"{sum(counters.skipped.values()):,d} skipped; {lost}",
        *_listed("skipped", counters.skipped),
        *(f"  warning: {warning}" for warning in counters.warnings),
    ]
    for table in counters.tables:
        about = " ".join(
            filter(None, (table.label, *(f"{name}={what}" for name, what in table.facts.items())))
        )
        lines += ["", f"{table.source}: {about}" if about else f"{table.source}:"]
        rows: dict[str, list[str]] = {}
        for scope, name, measure, value, unit in table.values:
            rows.setdefault(f"{scope} {name}".strip(), []).append(f"{measure} {_amount(value, unit)}")
        lines += [f"  {name}: {', '.join(values)}" for name, values in rows.items()]
        if table.totals:
            sums = (
                f"{what} {_amount(total, 'ps' if what == 'time' else '1')}"
                for what, total in table.totals.items()
            )
            lines.append(f"  in all: {', '.join(sums)}")
    return "\n".join(lines)


def _amount(value: float, unit: str) -> str:
    if unit == "ps":
        return format_time(int(value))
    return f"{value:,}{unit.removeprefix('1')}"


def _counts(names: pd.Series[Any]) -> dict[str, int]:
    """Count names, most frequent first."""
    return {str(name): int(number) for name, number in names.value_counts().items() if number}


def _quantiles(times: pd.Series[Any]) -> list[float] | None:
    known = times.dropna().astype("float64") / 1e6
    return [float(known.quantile(q)) for q in (0.1, 0.5, 0.9)] if len(known) else None


def _middle(values: pd.Series[Any], unit: int) -> float | None:
    known = values.dropna().astype("float64")
    return float(known.median()) / unit if len(known) else None


def _listed(what: str, counts: Mapping[str, int]) -> list[str]:
    most_first = sorted(counts.items(), key=lambda one: -one[1])
    return [f"  {what}: {number:,d} {name}" for name, number in most_first]


def _of(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{number:,d} {name}" for name, number in counts.items())
    return f": {listed}" if listed else ""


def _rate(rate: float | None) -> str:
    return "" if rate is None else f" ({rate:,.0f}/s)"


def _fields(plain: Mapping[str, Any]) -> str:
    """Write a workload or a storm in one line."""
    kind, *rest = plain.items()
    return " ".join([str(kind[1]), *(f"{name}={value}" for name, value in rest)])
