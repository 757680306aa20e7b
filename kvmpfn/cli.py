"""The command line: the API's verbs.

A user's mistake is one line on standard error that says what, where and the nearest valid value, and exit
code 2; nothing is then half-written.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kvmpfn.files import written
from kvmpfn.units import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from kvmpfn.hosts import Cost, Host
    from kvmpfn.results import Run
    from kvmpfn.scenario import Scenario
    from kvmpfn.study import Study

__all__ = ["app", "main"]

EVENT_ROWS = 1_000_000
"""Rows of the step log that ``run --events`` keeps: 40 MB."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Simulate how KVM turns guest page faults into host pages.",
)

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file, TOML or JSON.")]
OptionalFile = Annotated[
    Path | None, typer.Argument(metavar="SCENARIO", help="A scenario file, TOML or JSON.", show_default=False)
]
Selftest = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="In place of a file, a KVM selftest's command line: 'demand_paging_test -b 64M -v 4'.",
    ),
]
Phase = Annotated[str | None, typer.Option(help="Which phase of the selftest, if it has more than one.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field, such as vcpus=8 or storms.0.rate=1k/s."),
]
Until = Annotated[str | None, typer.Option(help="When to end: '3000000 faults' or '10ms'.")]
Explain = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Tell where the N slowest faults spent their time, and who was in the way."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Axes = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE,VALUE...", help="What to vary, and the values it takes.")
]
Replicas = Annotated[int, typer.Option(help="Simulations of each combination.")]
Jobs = Annotated[int, typer.Option(help="Simulations at once; 0 for one a processor.")]
Store = Annotated[Path | None, typer.Option(help="Folder that keeps finished runs, to go on from.")]
Csv = Annotated[Path | None, typer.Option(help="Write one row a run to this CSV file.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the versions in use, and stop.")] = False,
) -> None:
    if version:
        from kvmpfn.versions import show_versions

        show_versions()
        raise typer.Exit


@app.command()
def run(
    scenario: OptionalFile = None,
    selftest: Selftest = None,
    phase: Phase = None,
    changes: Changes = None,
    until: Until = None,
    output: Annotated[Path | None, typer.Option(help="Write the run to this Parquet file.")] = None,
    events: Annotated[
        Path | None,
        typer.Option(
            help="Write what happened step by step to this file: NAME.trace (ftrace text), NAME.dat (for "
            "trace-cmd and KernelShark), NAME.json (for the Perfetto UI) or NAME.parquet."
        ),
    ] = None,
    log: Annotated[
        int | None,
        typer.Option(metavar="ROWS", min=1, help="Steps that --events keeps; 1000000 if not given."),
    ] = None,
    explain: Explain = None,
    as_json: Json = False,
) -> None:
    """Simulate one scenario, or what a KVM selftest would run, and say what was found."""
    what = _chosen(scenario, selftest, phase, changes, until)
    _check_output(output)
    if log is not None and events is None:
        raise InputError(
            "--log: keeps rows for --events FILE, which is missing; leave it out, or name a file"
        )
    rows = _check_events(events, log)
    from kvmpfn.simulator import simulate

    result = simulate(what, log=rows)
    if output:
        result.to_parquet(output)
    if events:
        result.write_events(events)
    _show_run(result, explain, as_json, rows)


@app.command()
def compare(
    scenario: ScenarioFile,
    alternatives: Annotated[
        str, typer.Argument(metavar="KEY=VALUE,VALUE...", help="What to compare; the first is the baseline.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option(help="What to compare them by; may be given more than once.")
    ] = None,
    changes: Changes = None,
    until: Until = None,
    replicas: Replicas = 8,
    jobs: Jobs = 0,
    store: Store = None,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """Simulate alternatives under the same draws, and show paired differences."""
    metrics = metric or ["faults_per_second", "retry_share", "latency.mean"]
    study = _study(scenario, [alternatives], changes, until, replicas, jobs, store, csv, metrics)
    import pandas as pd

    tables = [study.paired(metric=name) for name in metrics]
    _show_table(pd.concat(tables, ignore_index=True), as_json)


@app.command()
def sweep(
    scenario: ScenarioFile,
    axes: Axes,
    metric: Annotated[
        list[str] | None, typer.Option(help="What to show; may be given more than once.")
    ] = None,
    changes: Changes = None,
    until: Until = None,
    replicas: Replicas = 8,
    jobs: Jobs = 0,
    store: Store = None,
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """Simulate every combination of some values, and show means with intervals."""
    metrics = metric or ["faults_per_second", "retry_share", "latency.mean"]
    study = _study(scenario, axes, changes, until, replicas, jobs, store, csv, metrics)
    _show_table(study.summary(), as_json)


@app.command()
def memory(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Guest memory, such as 16GiB.")],
    level: Annotated[str, typer.Option(help="Size of KVM's mappings: 4k, 2m or 1g.")] = "4k",
    backing: Annotated[str, typer.Option(help="What the memory is in the host.")] = "anon",
    mmu: Annotated[str, typer.Option(help="tdp or shadow.")] = "tdp",
    levels: Annotated[int, typer.Option(help="Depth of the tables: 4 or 5.")] = 4,
    vcpus: Annotated[int, typer.Option(help="Number of vCPUs.")] = 1,
    dirty_logging: Annotated[bool, typer.Option("--dirty-logging", help="Log dirty pages.")] = False,
    dirty_ring: Annotated[int, typer.Option(help="Entries of each vCPU's dirty ring; 0 is none.")] = 0,
    pml: Annotated[bool, typer.Option("--pml", help="vCPUs have a page-modification log.")] = False,
    hvo: Annotated[bool, typer.Option("--hvo", help="The vmemmap of huge pages is optimised.")] = False,
    address_spaces: Annotated[int, typer.Option(help="Guest address spaces that are shadowed.")] = 1,
    as_json: Json = False,
) -> None:
    """Count the bytes that mapping a guest's memory takes, structure by structure."""
    from kvmpfn.memory import memory_ledger

    ledger = memory_ledger(
        size,
        level=level,  # type: ignore[arg-type]  # checked there
        backing=backing,
        mmu=mmu,  # type: ignore[arg-type]  # checked there
        levels=levels,
        vcpus=vcpus,
        dirty_logging=dirty_logging,
        dirty_ring=dirty_ring,
        pml=pml,
        hvo=hvo,
        address_spaces=address_spaces,
    )
    if as_json:
        rows = [
            {"structure": row.name, "bytes": row.bytes, "formula": row.formula, "source": row.source}
            for row in ledger
        ]
        sizes = {"guest_bytes": ledger.guest_bytes, "backing_bytes": ledger.backing_bytes}
        _print_json({**sizes, "total_bytes": ledger.total, "structures": rows})
    else:
        print(ledger)


@app.command()
def check(
    presets: Annotated[
        list[str] | None, typer.Argument(metavar="PRESET...", help="Fault paths; every preset if none.")
    ] = None,
    vcpus: Annotated[int, typer.Option(help="1 to 3.")] = 2,
    pages: Annotated[int, typer.Option(help="1 or 2.")] = 1,
    invalidations: Annotated[int, typer.Option(help="1 to 3.")] = 1,
    memory_model: Annotated[str, typer.Option(help="sc, tso or weak.")] = "sc",
    caller: Annotated[str, typer.Option(help="Who resolves a pfn.")] = "fault",
    mutate: Annotated[str, typer.Option(help="Mutants to apply, with commas between them.")] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a mechanism, such as seq_checked=false."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try every interleaving of a tiny configuration; exit code 3 if one does harm."""
    from kvmpfn.fault_path import PRESETS, FaultPath
    from kvmpfn.protocol import check_protocol

    mechanisms = {key: _value(value) for key, value in (_assignment("--set", text) for text in changes or [])}
    paths = [FaultPath(name, **mechanisms) for name in presets or PRESETS]
    verdicts = [
        check_protocol(path, vcpus, pages, invalidations, memory_model, caller, mutate=mutate)
        for path in paths
    ]
    if as_json:
        _print_json([verdict.to_dict() for verdict in verdicts])
    else:
        print("\n\n".join(repr(verdict) for verdict in verdicts))
    if not all(verdict.safe for verdict in verdicts):
        raise typer.Exit(3)


@app.command()
def trace(
    recording: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What ftrace, trace-cmd, perf, bpftrace or a summary printed."),
    ],
    memslots: Annotated[
        Path | None, typer.Option(help="CSV of gfn, hva and pages: where guest memory lies in the host.")
    ] = None,
    kernel: Annotated[str | None, typer.Option(help="Kernel recorded, such as 6.1 or 6.16.")] = None,
    clock_hz: Annotated[float | None, typer.Option(help="Rate of a clock that counts ticks.")] = None,
    vm: Annotated[int, typer.Option(help="Which VM to fit and replay; 0 has most faults.")] = 0,
    vcpus: Annotated[str | None, typer.Option(help="vCPUs of --fit: a number, or 4x as recorded.")] = None,
    storm: Annotated[str, typer.Option(help="How much more frequent --fit invalidates, such as 10x.")] = "1x",
    replay: Annotated[
        Path | None, typer.Option(help="Write the recorded accesses as a scenario to this file.")
    ] = None,
    fit: Annotated[Path | None, typer.Option(help="Write the fitted scenario to this file.")] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Simulate both, and say how like the recording they are.")
    ] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write the events to this Parquet file.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a recording of KVM's faults holds, and make scenarios of it."""
    for path in (replay, fit, parquet):
        _check_output(path)
    from kvmpfn.traces import read_trace
    from kvmpfn.traces.report import describe

    one = read_trace(
        recording, kernel=kernel, memslots=memslots, clock_hz=clock_hz, events=parquet is not None
    )
    table = one.fit(vm=vm).quality() if quality else None
    scenarios = [(replay, one.scenario(vm=vm))] if replay else []
    if fit:
        count = int(vcpus) if vcpus and vcpus.isdecimal() else vcpus
        scenarios.append((fit, one.fit(vm=vm).scenario(vcpus=count, storm=storm)))
    elif vcpus or storm != "1x":
        raise InputError("--vcpus, --storm: belong to --fit; nearest is --fit fit.toml")
    for path, scenario in scenarios:
        _write_text(scenario.to_json() if path.suffix == ".json" else scenario.to_toml(), path)
    if parquet:
        one.to_parquet(parquet)
    if as_json:
        found = describe(one, vm)
        if table is not None:
            found["quality"] = json.loads(table.reset_index().to_json(orient="records"))
        _print_json(found)
        return
    print(one.summary(vm))
    if table is not None:
        print(f"\n{table.to_string(float_format=lambda number: f'{number:.5g}', na_rep='-')}")


@app.command()
def hosts(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One host, cost by cost; all hosts if none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the hosts there is data for, with what of it was read, derived and assumed."""
    from kvmpfn.hosts import COSTS, Host

    if name is None:
        _show_records([_host_row(Host.load(known)) for known in Host.names()], as_json)
        return
    host = Host.load(name)
    costs = [_cost_row(cost, host.costs[cost]) for cost in COSTS]
    if as_json:
        _print_json({**_host_row(host), "costs": costs})
        return
    print(f"{host.name}: {host.title}")
    for row in costs:
        row["source or reason"] = "; ".join(filter(None, (row.pop("source"), row.pop("reason"))))
    _show_records(costs, as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of scenario files, for editors that complete and check them."""
    from kvmpfn.schema import scenario_schema

    _print_json(scenario_schema())


@app.command()
def figures(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Notebooks to run, by name or part of it; all if none."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The checkout; if not given, found from here up.")] = None,
    timeout: Annotated[int, typer.Option(help="Seconds that a notebook's cell may take.")] = 1800,
    as_json: Json = False,
) -> None:
    """Run the notebooks in order; each writes its figures, and the data behind them, to figures/."""
    checkout = _checkout(root)
    notebooks = _notebooks(checkout, names or [])
    failures: dict[str, str] = {}
    for path in notebooks:
        if not as_json:
            print(f"{path.stem} ...", flush=True)
        if failure := _execute_notebook(path, checkout, timeout):
            failures[path.stem] = failure
            print(f"kvmpfn: {path.name}: {failure}", file=sys.stderr, flush=True)
    if as_json:
        _print_json({path.stem: failures.get(path.stem) for path in notebooks})
    if failures:
        raise typer.Exit(1)


@app.command()
def bench(
    full: Annotated[
        bool,
        typer.Option("--full", help="All sizes, all fault paths, a cold compile; takes some 20 minutes."),
    ] = False,
    results: Annotated[
        Path | None, typer.Option(help="Measure nothing; take what --output once wrote to this file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the results to this file, as JSON.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Put the tables into this document.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Write the figure to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Time the simulator on this machine, beside a program in C, the oracle and cache misses: a minute."""
    from kvmpfn.bench import FULL, QUICK, Report, measure, split_readme, write_readme

    if results and full:
        raise InputError("--full: measures, and --results takes what was measured; leave out one")
    _check_output(output)
    if readme:
        split_readme(readme)
    if figures and figures.exists() and not figures.is_dir():
        raise InputError(f"{figures}: is a file; nearest is {figures.parent}")
    if results:
        report = Report.load(results)
    else:
        report = measure(FULL if full else QUICK, _say)
        _say("")
    if output:
        output.write_text(report.to_json(), encoding="utf-8")
    if readme:
        write_readme(report, readme)
    sizes = report.tables["sizes"]
    if figures and not sizes.empty:
        from kvmpfn.plots import save
        from kvmpfn.plots.bench import plot_sizes

        save(plot_sizes(sizes), "bench", sizes, folder=figures)
    if as_json:
        _print_json(report.to_dict())
    else:
        print(report)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit with its code.

    Parameters
    ----------
    arguments : sequence of str, optional
        In place of the process's own.
    """
    try:
        code = app(arguments, prog_name="kvmpfn", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader had enough; leave nothing for the interpreter to flush at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # Typer's own complaints about options, which are the user's mistakes too.
        if (message := getattr(error, "format_message", None)) is None:
            raise
        # Without arguments there is help, which Typer has printed already.
        _fail(message(), 2) if message() else sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"kvmpfn: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _say(text: str) -> None:
    """Show what is being done, in place of what was said before; on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _scenario(path: Path, changes: list[str] | None, until: str | None) -> Scenario:
    """Read a scenario file, and change what the command line changes."""
    from kvmpfn.scenario import Scenario

    if not path.is_file():
        files = _scenario_files(path.parent)
        hint = f"; nearest is {path.with_name(nearest(path.name, files))}" if files else ""
        raise InputError(f"{path}: no such file{hint}")
    return _changed(Scenario.load(path), changes, until)


def _chosen(
    path: Path | None, selftest: str | None, phase: str | None, changes: list[str] | None, until: str | None
) -> Scenario:
    """Read a scenario file or a selftest's command line, whichever was given."""
    if path is not None and selftest is not None:
        raise InputError(f"--selftest: takes the place of a file; leave out {path}")
    if path is not None:
        if phase is not None:
            raise InputError("--phase: belongs to --selftest; a file is one phase")
        return _scenario(path, changes, until)
    if selftest is None:
        raise InputError("no SCENARIO file; nearest is --selftest 'demand_paging_test -b 64M -v 4'")
    from kvmpfn import selftests

    return _changed(selftests.selftest(selftest, phase), changes, until)


def _changed(scenario: Scenario, changes: list[str] | None, until: str | None) -> Scenario:
    """Change what the command line changes."""
    for change in changes or []:
        key, value = _assignment("--set", change)
        scenario = scenario.with_path(key, _value(value))
    return scenario.replace(until=until) if until else scenario


def _scenario_files(folder: Path) -> list[str]:
    return [path.name for pattern in ("*.toml", "*.json") for path in folder.glob(pattern)]


def _study(
    path: Path,
    axes: list[str],
    changes: list[str] | None,
    until: str | None,
    replicas: int,
    jobs: int,
    store: Path | None,
    csv: Path | None,
    metrics: list[str],
) -> Study:
    """Run a sweep as the command line asks for it."""
    scenario = _scenario(path, changes, until)
    values: dict[str, list[Any]] = {}
    for axis in axes:
        key, text = _assignment("axis", axis)
        if key in values:
            raise InputError(f"{key}: stands there twice; list its values once, as {key}=VALUE,VALUE")
        values[key] = [_value(item) for item in _split(text)]
    if jobs < 0:
        raise InputError(f"--jobs: {jobs} is negative; nearest is 0")
    _check_output(csv)
    from kvmpfn import study

    result = study.sweep(
        scenario,
        values,
        replicas=replicas,
        executor=jobs or "local",
        store=store,
        progress=sys.stderr.isatty(),
        metrics=metrics,
    )
    if csv:
        _write_csv(result.frame, csv)
    return result


def _assignment(where: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise InputError(f"{where}: {text!r} is not KEY=VALUE; for instance fault_path=v6.1")
    return key.strip(), value.strip()


def _value(text: str) -> Any:
    """Read a value as TOML would; what TOML does not know is a string, so that units need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _split(text: str) -> list[str]:
    """Split at the commas that are outside brackets and quotes."""
    items, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            items.append("")
            continue
        items[-1] += character
    return [item.strip() for item in items]


def _check_output(path: Path | None) -> None:
    """Refuse a file that could not be written before anything is simulated."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path}: is a folder; nearest is a file in it")
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir():
            folder = folder.parent
        raise InputError(f"{path}: its folder does not exist; nearest is {folder}")


def _check_events(path: Path | None, rows: int | None) -> int:
    """Refuse a file of events that could not be written, and say how many rows of the log are to be kept."""
    if path is None:
        return 0
    from kvmpfn.export import check_events_file

    _check_output(path)
    check_events_file(path)
    return EVENT_ROWS if rows is None else rows


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    _write_text(frame.to_csv(index=False, float_format="%.9g", lineterminator="\n"), path)


def _write_text(text: str, path: Path) -> None:
    """Write a file whole or not at all."""
    with written(path) as (part,):
        part.write_text(text, encoding="utf-8")


def _show_run(result: Run, explain: int | None, as_json: bool, rows: int) -> None:
    told = result.explain(explain) if explain else None
    if as_json:
        _print_json(result.to_dict() | ({"explanation": told.to_dict()} if told else {}))
        return
    print(result.summary())
    print(f"digest: {result.digest}")
    if 0 < rows < result.meta["log_seen"]:
        print(f"events: the first {rows:,d} of {result.meta['log_seen']:,d} steps; --log keeps more")
    if told:
        print(f"\n{told}")


def _show_table(frame: pd.DataFrame, as_json: bool) -> None:
    if as_json:
        # By way of pandas, which writes NaN as null.
        _print_json(json.loads(frame.to_json(orient="records", double_precision=15)))
    else:
        print(frame.to_string(index=False, float_format=lambda number: f"{number:.6g}"))


def _host_row(host: Host) -> dict[str, Any]:
    """Say how large a host is, and how good its costs are."""
    statuses = [cost.status for cost in host.costs.values()]
    return {
        "host": host.name,
        "title": host.title,
        "sockets": host.sockets,
        "cores": host.cores,
        "threads": host.threads,
        "GHz": host.ghz,
        **{status: statuses.count(status) for status in ("read", "derived", "assumed")},
    }


def _cost_row(name: str, cost: Cost) -> dict[str, Any]:
    """Say all there is to say of one cost."""
    figures = {
        key: int(figure) if figure == int(figure) else float(figure)
        for key, figure in (("value", cost.value), ("low", cost.low), ("high", cost.high))
    }
    named = {"unit": cost.unit, "status": cost.status, "source": cost.source, "reason": cost.reason}
    return {"cost": name, **figures, **named}


def _show_records(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows in columns: numbers to the right, text to the left, the last one as long as it is."""
    if as_json:
        _print_json(rows)
        return
    table = [list(rows[0]), *([format(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = ["<" if isinstance(value, str) else ">" for value in rows[0].values()]
    for line in table:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(line, left, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _checkout(root: Path | None) -> Path:
    """Find the folder that has notebooks."""
    start = (root or Path.cwd()).resolve()
    for folder in [start] if root else [start, *start.parents]:
        if any(folder.glob("notebooks/*.ipynb")):
            return folder
    raise InputError(
        f"{start}: no notebooks/*.ipynb there{'' if root else ' or above'}; name the checkout by --root"
    )


def _notebooks(root: Path, names: Sequence[str]) -> list[Path]:
    """Choose notebooks, in the order of their names."""
    every = sorted(root.glob("notebooks/*.ipynb"))
    chosen = set()
    for name in names:
        wanted = Path(name).name.removesuffix(".ipynb")
        exact = [path for path in every if path.stem == wanted]
        matches = exact or [path for path in every if wanted in path.stem]
        if not matches:
            near = nearest(wanted, [path.stem for path in every])
            raise InputError(f"figures: no notebook {name!r}; nearest is {near!r}")
        chosen.update(matches)
    return [path for path in every if path in chosen] if names else every


def _execute_notebook(path: Path, root: Path, timeout: int) -> str | None:
    """Run a notebook from the checkout's root, leave it as it is, and return what went wrong."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    try:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except (ValueError, OSError) as error:
        return f"cannot be read as a notebook: {next(_lines(str(error)), '')}"
    output = root / "figures"
    output.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kvmpfn-") as scratch:
        environment = {
            **os.environ,
            "KVMPFN_FIGURES": str(output),
            "IPYTHONDIR": scratch,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYTHONHASHSEED": "0",
        }
        # Sockets in a folder of our own: no port that others on this machine could listen to.
        kernel = {"transport": "ipc", "ip": f"{scratch}/ipc", "connection_file": f"{scratch}/kernel.json"}
        client = NotebookClient(
            notebook,
            config=Config({"KernelManager": kernel}),
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": str(root)}},
        )
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            return f"{error.ename}: {next(_lines(error.evalue), '')}"
        except (CellTimeoutError, DeadKernelError) as error:
            return next(_lines(str(error)), type(error).__name__)
    return None


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())
