"""Generators that behave like a recording: storms and places recovered, fits measured, kvmpfn trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces_made_up import PROBES, SLOT, US, columns, without

import kvmpfn as kp
from kvmpfn.cli import main
from kvmpfn.core.names import STEPS
from kvmpfn.plots.replay import plot_outcomes, plot_over_time, plot_presets, plot_quality
from kvmpfn.traces import Trace, read_trace
from kvmpfn.traces.events.records import Records
from kvmpfn.traces.locality import locality, run_lengths, times_away
from kvmpfn.traces.memslots import Memslots
from kvmpfn.traces.replay import is_paced as replayed_at_own_pace
from kvmpfn.traces.storm_fit import fit_storm
from kvmpfn.units import InputError
from kvmpfn.validation.replays import METRICS, preset_quantities, retry_cells

# ---------------------------------------------------------------- storms


def calls(start: Any, span: Any = 64, first: Any = 0, hold: int = 4 * US, end: int = 5 * US) -> pd.DataFrame:
    """Invalidations as `Trace.invalidations` has them."""
    start = np.asarray(start, dtype="i8")
    first = np.broadcast_to(np.asarray(first, dtype="i8"), start.shape)
    frame = pd.DataFrame({"start_ps": start, "hva_start": first * 4096, "hva_end": (first + span) * 4096})
    frame["gfn_start"], frame["gfn_end"] = (
        pd.array(first, dtype="Int64"),
        pd.array(first + span, dtype="Int64"),
    )
    frame["span"] = (frame["hva_end"] - frame["hva_start"]).astype("u8")
    frame["hold_ps"] = pd.array([hold] * len(start), dtype="Int64")
    frame["end_ret_ps"] = pd.array(start + end, dtype="Int64")
    return frame


@given(
    st.integers(1, 50), st.sampled_from(["periodic", "poisson", "closed_loop", "bursts"]), st.integers(0, 99)
)
def test_arrivals_are_recovered(ms: int, arrival: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gap, end = ms * 10**9, 5 * US
    if arrival == "closed_loop":
        took = rng.integers(US, 10**9, 400)
        frame = calls(np.cumsum(took + gap) - took, end=0)
        frame["end_ret_ps"] = frame["start_ps"] + took
    elif arrival == "bursts":
        within = rng.exponential(gap / 100, (40, 50)).cumsum(axis=1)
        frame = calls((within + (within[:, -1] + 2 * gap).cumsum()[:, None]).ravel().astype("i8"), end=0)
    else:
        gaps = np.full(400, gap) if arrival == "periodic" else rng.exponential(gap, 400)
        frame = calls(gaps.cumsum(), end=end)
    storm = fit_storm(frame)
    assert storm.arrival == arrival
    if arrival in ("periodic", "closed_loop"):
        assert storm.gap_ps == pytest.approx(gap, rel=0.01)
    elif arrival == "poisson":
        assert storm.gap_ps == pytest.approx(gap, rel=0.2)
    else:
        assert storm.gap_ps == pytest.approx(gap / 100, rel=0.1)
        assert storm.off_ps == pytest.approx(2 * gap, rel=0.2)
        assert storm.on_ps == pytest.approx(gap / 2, rel=0.15)
    assert (storm.span_bytes, storm.hold_ps) == (64 * 4096, 4 * US)


def test_places_are_recovered() -> None:
    at = np.arange(1, 101) * 10**9
    rng = np.random.default_rng(1)
    slots = Memslots([(0x100, 0x100000, 100000)])
    assert fit_storm(calls(at, first=0x100 + np.arange(100) * 64)).place == "scan"
    assert fit_storm(calls(at, first=0x180), memslots=slots).offset_pages == 0x80
    anywhere = fit_storm(calls(at, first=0x100 + rng.integers(0, 9999, 100)), memslots=slots)
    assert (anywhere.place, anywhere.offset) == ("random", None)
    assert fit_storm(calls(at), asked=-1).arrival == "closed_loop"
    assert fit_storm(calls(rng.exponential(10**9, 100).cumsum()), asked=1000).arrival == "periodic"


# ---------------------------------------------------------------- locality


def renewal(weights: Any, rate: float, taken: float, rng: np.random.Generator) -> Any:
    """Faults on pages accessed by some weights; how often each faulted once away, and how long it was away.

    In a million units of time, in which each page is taken away so many times on average.
    """
    faults: list[tuple[float, int]] = []
    counts, away = np.zeros(len(weights), dtype="i8"), np.zeros(len(weights))
    for page, weight in enumerate(weights):
        at = rng.exponential(1 / taken)
        while at < 1:
            back = at + rng.exponential(1 / (rate * weight))
            away[page] += min(back, 1) - at
            if back < 1:
                counts[page] += 1
                faults.append((back, page))
            at = back + rng.exponential(1 / taken)
    return np.array([page for _, page in sorted(faults)]), (counts, (1e6 * away).astype("i8"))


@pytest.mark.parametrize("taken", [3, 20])
@pytest.mark.parametrize("exponent", [0.0, 0.6, 0.99])
def test_zipf_is_recovered_though_popular_pages_hardly_fault_more(exponent: float, taken: float) -> None:
    rng = np.random.default_rng(5)
    weights = np.arange(1, 1025) ** -exponent
    order = rng.permutation(1024)
    faults, away = renewal(weights[order] / weights.sum(), 20 * 1024, taken, rng)
    found = locality([faults], 1024, away, 10**6)
    assert found.pattern == ("zipf" if exponent else "uniform")
    assert found.exponent == pytest.approx(exponent, abs=0.05)
    assert found.accesses == pytest.approx(20 * 1024, rel=0.1)
    if exponent:
        # Counts alone would have it far too even.
        counts = np.bincount(faults, minlength=1024)[np.argsort(order)]
        assert counts[:10].mean() / counts[512:].mean() < weights[:10].mean() / weights[512:].mean() / 3


@pytest.mark.parametrize("taken", [3, 20])
@pytest.mark.parametrize(("hot", "share"), [(0.1, 0.9), (0.25, 0.7)])
def test_a_hot_window_is_recovered(hot: float, share: float, taken: float) -> None:
    rng = np.random.default_rng(6)
    pages, window = 2000, int(hot * 2000)
    weights = np.full(pages, (1 - share) / (pages - window))
    weights[300 : 300 + window] = share / window
    faults, away = renewal(weights, 5 * pages, taken, rng)
    found = locality([faults], pages, away, 10**6)
    assert found.pattern == "hot_cold"
    assert found.hot_memory == pytest.approx(hot, rel=0.1)
    assert found.hot_accesses == pytest.approx(share, rel=0.05)
    assert found.accesses == pytest.approx(5 * pages, rel=0.1)


def test_without_a_map_each_fault_is_an_access() -> None:
    rng = np.random.default_rng(8)
    weights = np.arange(1, 513) ** -1.0
    draws = rng.choice(rng.permutation(512), 8000, p=weights / weights.sum())
    found = locality([draws], 512, None, 10**6)
    assert found.pattern == "zipf"
    assert found.exponent == pytest.approx(1.0, abs=0.05)
    assert found.accesses == pytest.approx(8000, rel=0.05)


def test_time_away_is_from_the_invalidation_to_the_fault() -> None:
    time = np.array([10, 20, 30, 40, 50, 60])
    first, last = np.array([0, 1, 1, 0, 2, 2]), np.array([2, -1, -1, 3, 3, -1])
    faults, away, since = np.zeros(4, "i8"), np.zeros(4, "i8"), np.full(4, -1)
    times_away(time, first, last, 2, 100, faults, away, since)
    assert faults.tolist() == [0, 1, 1, 0]
    assert away.tolist() == [90, 10 + 1 + 60, 20 + 1, 0]


def test_sweeps_and_first_touches_are_told_from_draws() -> None:
    rng = np.random.default_rng(7)
    ones = [np.arange(1000) % 500 + 500 * vcpu for vcpu in range(2)]
    found = locality(ones, 1000, None, 1)
    assert (found.pattern, found.stride, found.passes, found.shared) == ("sweep", 1, 2, False)
    some = [np.flatnonzero(rng.random(1000) < 0.3) for _ in range(4)]
    found = locality([np.concatenate([one, one]) for one in some], 1000, None, 1)
    assert found.pattern == "sweep" and found.shared
    assert found.accesses == pytest.approx(8000, rel=0.02)
    strided = np.arange(4096).reshape(8, 512).T.ravel()
    assert locality([strided], 4096, None, 1).stride == 512
    assert locality([rng.permutation(1000)], 1000, None, 1).pattern == "once"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.sampled_from([1, 2, 512]))
def test_runs_are_counted_as_long_as_they_are(lengths: list[int], stride: int) -> None:
    pages, at = [], 0
    for length in lengths:
        pages += [at + stride * place for place in range(length)]
        at = pages[-1] + stride + 1
    assert run_lengths([np.array(pages)], stride).tolist() == lengths


# ---------------------------------------------------------------- fits


CALL_STEPS = {"started": "inv_start_ret", "end": "inv_end", "ended": "inv_end_ret"}


def as_recording(run: kp.Run) -> Trace:
    """A simulated run as a recording of its faults and invalidations."""
    clients, retry, fixed = len(run.clients), 1, 5
    pages = [storm.span_pages for storm, _ in run.scenario.clients]
    rows: list[list[Any]] = []
    accesses: dict[int, int] = {}
    last: dict[int, list[Any]] = {}
    for time, actor, step, gfn, first in run.arrays["log"].tolist():
        pid, name = actor, STEPS[step]
        if name == "access":
            accesses[pid] = accesses.get(pid, 0) + 1
        elif name == "handle":
            # After a retry the vCPU's next access is the same one; else it hits first.
            if pid in last and accesses[pid] == 1:
                last[pid][3] = retry
            address = (SLOT[0] + gfn) << 12
            rows.append([time, pid, "kvm_page_fault", actor - clients, 0, address, 0x100000006])
        elif name == "finish":
            last[pid], accesses[pid] = [time, pid, "pf_ret", fixed, 0, 0, 0], 0
            rows.append(last[pid])
        elif name == "start" and actor < clients:
            begin = SLOT[1] + (first << 12)
            rows.append([time, pid, "kvm_unmap_hva_range", begin, begin + (pages[actor] << 12), 0, 0])
        elif name in CALL_STEPS and actor < clients:
            rows.append([time, pid, CALL_STEPS[name], 0, 0, 0, 0])
    records = Records(**columns(rows), lines=len(rows))
    return Trace("run", "6.16", records, memslots=Memslots([(*SLOT[:2], run.scenario.pages)]))


WORKLOADS: list[Callable[[], Any]] = [
    lambda: kp.workloads.zipf(exponent=0.9, accesses=30_000, writes=1.0, think="2us"),
    lambda: kp.workloads.uniform(accesses=30_000, writes=1.0, think="2us"),
    lambda: kp.workloads.hot_cold(hot_memory=0.1, hot_accesses=0.8, accesses=30_000, writes=1.0, think="2us"),
    lambda: kp.workloads.sequential(passes=6, writes=1.0, think="2us"),
]


@pytest.mark.parametrize("make", WORKLOADS)
def test_a_simulated_workload_is_recovered(make: Callable[[], Any]) -> None:
    scenario = kp.Scenario(
        host="milan_2s",
        vcpus=2,
        memory="16MiB",
        mmu="npt",
        workload=make(),
        storms=[kp.storms.poisson(rate="20k/s", span="256KiB", hold="5us")],
        fault_path="v6.16",
    )
    run = kp.simulate(scenario, log=1 << 22, progress=False)
    assert run.meta["log_seen"] < 1 << 22
    trace = as_recording(run)
    assert len(trace.faults) == run.counters["pf_taken"]
    assert len(trace.invalidations) == run.counters["invalidations"]
    # A retry whose page the other vCPU maps meanwhile is followed by a hit, as a fixed one is.
    assert 0.9 * run.counters["retry"] < trace.outcomes()["RETRY"] <= run.counters["retry"]
    fit = trace.fit()
    work, found = scenario.workload, fit.workload()
    assert found.kind == work.kind
    for name, tolerance in (("exponent", 0.03), ("hot_memory", 0.01), ("hot_accesses", 0.03)):
        if hasattr(work, name):
            assert getattr(found, name) == pytest.approx(getattr(work, name), abs=tolerance)
    accesses = getattr(work, "accesses", None) or 6 * 2048
    assert found.accesses == pytest.approx(accesses, rel=0.06)
    assert found.think_ps == pytest.approx(2 * US, rel=0.15)
    (storm,) = fit.storms()
    assert storm.arrival == "poisson" and storm.span_bytes == 256 << 10
    assert storm.gap_ps == pytest.approx(50 * US, rel=0.1)
    assert 5 * US <= storm.hold_ps < 6.5 * US  # with the host's own work under it
    again = kp.simulate(fit.scenario(), progress=False)
    assert again.faults_per_second == pytest.approx(run.faults_per_second, rel=0.06)
    assert again.retry_share == pytest.approx(run.retry_share, rel=0.2)


@pytest.fixture(scope="module", params=["6.1", "6.16"])
def storm(request: pytest.FixtureRequest, repo_root: Path) -> Trace:
    return read_trace(repo_root / "data" / "recordings" / str(request.param) / "st-v1-r1000.trace.gz")


def test_the_fit_of_a_recorded_storm_is_as_good_as_it_says(storm: Trace) -> None:
    """Tolerances: what was measured, and a third more; 6.1's retries are the least like it (see 07)."""
    fit = storm.fit()
    assert (fit.places.pattern, fit.pages, fit.vcpus, fit.backing) == ("sweep", 4096, 1, "anon")
    table = fit.quality(replicas=3)
    old = storm.kernel == "6.1"
    assert table.loc["retries an invalidation", "recorded"] == pytest.approx(
        {True: 0.449, False: 0.314}[old], abs=1e-3
    )
    limits = {
        "faults a vCPU": (12, 12) if old else (3, 3),
        "retries an invalidation": (26, 15) if old else (10, 6),
        "invalidations": (0.5, 0.5),
        "pages that faulted": (0.1, 0.3),
        "run an access is in, mean": (21, 12),
        "between faults, median": (1, 20),
        "in the handler, median": (1, 1),
        "span of an invalidation, median": (0, 0),
        "hold of an invalidation, median": (0, 0),
    }
    for quantity, (replayed, fitted) in limits.items():
        assert abs(table.loc[quantity, "replayed_error"]) <= replayed, quantity
        assert abs(table.loc[quantity, "fitted_error"]) <= fitted, quantity
    assert table.loc["between faults, distance", "replayed"] < 0.1
    distances = table[table["unit"] == "KS"]
    assert distances[["replayed", "fitted"]].stack().between(0, 1).all()
    assert distances["fitted_error"].isna().all()


def test_a_fit_scales(storm: Trace) -> None:
    fit = storm.fit()
    base, more = fit.scenario(), fit.scenario(vcpus="4x", storm="10x")
    assert (base.vcpus, more.vcpus) == (1, 4)
    assert more.memory_bytes == 4 * base.memory_bytes
    assert base.storms[0].gap_ps == pytest.approx(10 * more.storms[0].gap_ps, rel=1e-3)
    assert fit.scenario(vcpus=3).vcpus == 3
    assert fit.scenario(fault_path="v6.13").fault_path == "v6.13"
    runs = [kp.simulate(one, until="3ms", progress=False) for one in (base, more)]
    assert runs[1].counters["invalidations"] > 5 * runs[0].counters["invalidations"]
    for wrong in ({"vcpus": "many"}, {"vcpus": 0}, {"storm": 0}, {"storm": "-2x"}):
        with pytest.raises(InputError, match="nearest"):
            fit.scenario(**wrong)


def test_the_page_of_a_recording(storm: Trace) -> None:
    scenario = storm.scenario()
    study = kp.compare(
        scenario.replace(until=4000),
        fault_path=["v6.1", "v6.16"],
        replicas=3,
        metrics=METRICS,
        progress=False,
    )
    own = study.frame[study.frame["fault_path"] == f"v{storm.kernel}"]
    cells = retry_cells(storm, own)
    recorded = cells[cells["source"] == "recorded"].set_index("cell")["share"]
    retries = storm.outcomes()["RETRY"]
    assert recorded.sum() == pytest.approx(100 * retries / storm.outcomes().sum())
    replayed = cells[cells["source"] == "replayed"]["share"].sum()
    assert replayed == pytest.approx(100 * own["retry"].sum() / own["pf_taken"].sum())
    assert (
        recorded.idxmax() == {"6.1": "under mmu_lock: sequence", "6.16": "after GUP: sequence"}[storm.kernel]
    )
    presets = preset_quantities(storm, study.frame)
    assert set(presets["preset"]) == {"recorded", "v6.1", "v6.16"}
    real = presets.set_index(["preset", "quantity"]).loc[("recorded", "retries for each invalidation")]
    assert real["mean"] == pytest.approx(retries / len(storm.invalidations))
    assert real["low"] < real["mean"] < real["high"]
    assert (presets["low"] <= presets["mean"]).all()
    over_time, quality = storm.over_time(20), storm.fit().quality(replicas=1, most=500)
    time, outcomes = plot_over_time(over_time, "t"), plot_outcomes(cells, "t")
    both, good = plot_presets(presets, "t"), plot_quality(quality, "t")
    assert time.axes[0].get_lines()[0].get_ydata().tolist() == over_time["faults_per_s"].tolist()
    assert [text.get_text() for text in outcomes.axes[0].get_yticklabels()] == list(recorded.index)
    assert [ax.get_ylabel() for ax in both.axes] == list(presets["quantity"].unique())
    shown = [text.get_text() for ax in good.axes for text in ax.get_yticklabels()]
    assert set(shown) <= set(quality.index) and "faults a vCPU" in shown
    plt.close("all")


def test_the_page_of_a_recording_without_probes(storm: Trace) -> None:
    less = without(storm, PROBES)
    frame = kp.compare(
        less.scenario(until=500), fault_path=["v6.1"], replicas=2, metrics=METRICS, progress=False
    ).frame
    cells = retry_cells(less, frame)
    assert set(cells["cell"]) == {"all retries"}
    assert cells["share"].iloc[0] == pytest.approx(100 * less.outcomes()["RETRY"] / less.outcomes().sum())
    said = less.summary()
    assert "how faults ended: no return of the handler" in said
    assert "where retries were caught: no gup" in said
    assert not replayed_at_own_pace(less) and replayed_at_own_pace(storm)


def test_a_closed_loop_scales_by_its_pause(repo_root: Path) -> None:
    trace = read_trace(repo_root / "data" / "recordings" / "6.1" / "st-v1-r-1.trace.gz")
    fit = trace.fit()
    assert [storm.think_ps for storm in fit.storms("3x")] == [US]
    assert fit.pages == 4096  # the sweep did not get to its end, but the rest is invalidated too


def test_huge_pages_are_fitted_as_such(repo_root: Path) -> None:
    fit = read_trace(repo_root / "data" / "recordings" / "6.16" / "dht-v1.trace.gz").fit()
    scenario = fit.scenario()
    assert (fit.backing, scenario.memory_bytes) == ("thp", 64 << 20)
    counters = kp.simulate(scenario, progress=False).counters
    assert counters["pages_2m"] == counters["pf_fixed"] == 32


# ---------------------------------------------------------------- command line


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    assert isinstance(exit.value.code, int)
    return exit.value.code


def test_the_command_line_says_what_is_in_a_recording(
    repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = repo_root / "data" / "recordings" / "6.16" / "st-v1-r1000.trace.gz"
    assert call("trace", file) == 0
    assert capsys.readouterr().out.rstrip("\n") == read_trace(file).summary()
    replay, fit, events = tmp_path / "replay.toml", tmp_path / "fit.json", tmp_path / "events.parquet"
    more = ("--replay", replay, "--fit", fit, "--vcpus", "4x", "--storm", "10x", "--parquet", events)
    assert call("trace", file, *more, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcomes"] == {"FIXED": 9743, "RETRY": 174, "unfinished": 1}
    assert found["lines"] == found["events"] + sum(found["skipped"].values())
    assert kp.Scenario.load(replay).workload.kind == "replay"
    assert kp.Scenario.load(fit).vcpus == 4
    again = read_trace(events, kernel="6.16")
    assert again.outcomes().to_dict() == {"FIXED": 9743, "RETRY": 174}
    assert {path.name for path in tmp_path.iterdir()} == {"replay.toml", "fit.json", "events.parquet"}


def test_the_command_line_measures_a_fit(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repo_root / "data" / "recordings" / "6.16" / "dht-v1.trace.gz"
    assert call("trace", file, "--quality", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["quality"]
    assert {row["quantity"] for row in rows} >= {"faults a vCPU", "between faults, median"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.trace"], "no such recording"),
        (["{file}", "--memslots", "missing.csv"], "no such file"),
        (["{file}", "--kernel", "new"], "not a version"),
        (["{file}", "--vcpus", "4x"], "belong to --fit"),
        (["{file}", "--replay", "nowhere/x.toml"], "its folder does not exist"),
        (["{file}", "--vm", "3", "--replay", "{out}"], "no fault of VM 3"),
        (["{file}", "--vm", "3", "--fit", "{out}"], "too few to fit"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], says: str, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = repo_root / "data" / "recordings" / "6.16" / "dht-v1.trace.gz"
    out = tmp_path / "out.toml"
    assert call("trace", *(one.format(file=file, out=out) for one in arguments)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not out.exists()
