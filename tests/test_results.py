"""A Run reads its arrays right, and comes back from a file as it was."""

from __future__ import annotations

import json
import math
import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import make_run

import kvmpfn as kp
from kvmpfn.core import events, layout, names
from kvmpfn.core.jit import kernel
from kvmpfn.results import METRICS, Latency, Run, bucket_bounds, load
from kvmpfn.units import InputError

histogram_bucket = kernel(events.histogram_bucket)


@pytest.fixture(scope="module")
def stormy() -> Run:
    """A small real run in which most things happen."""
    scenario = kp.Scenario(
        vcpus=8,
        vms=2,
        memory="16MiB",
        workload=kp.workloads.uniform(accesses=3000),
        storms=[kp.storms.poisson(rate="100k/s", span="256KiB", hold="4us")],
    )
    return kp.simulate(scenario, log=50)


def test_counters_are_summed_over_vms_and_named() -> None:
    run = make_run(kp.Scenario(vms=3, vcpus=2, memory="64MiB"))
    raw = run.arrays["counters"]
    for column, name in enumerate(names.COUNTERS):
        assert run.counters[name] == raw[:, column].sum()
        assert list(run.vm_counters[name]) == list(raw[:, column])
    for i, context in enumerate(names.RMW_CONTEXTS):
        for j, line in enumerate(names.RMW_LINES):
            assert run.counters[f"rmw.{context}.{line}"] == run.arrays["rmw"][:, i, j].sum()
    for j, distance in enumerate(names.DISTANCES):
        assert run.counters[f"transfers.{distance}"] == run.arrays["transfers"][:, j].sum()
    assert run.faults == run.counters["faults"] == run.counters["pf_fixed"]
    assert list(run.counters.index) == list(run.vm_counters.columns)
    assert run.counters.dtype == np.int64
    assert run.counters.attrs["units"]["lock_wait.mmu_lock.read"] == "ps"


def test_retry_sums_are_over_the_disjoint_cells() -> None:
    c = make_run().counters
    cells = c[[name for name in names.COUNTERS if name.startswith("retry.")]]
    assert c["retry"] == cells.sum()
    assert c["retry_seq"] == cells.filter(like=".seq").sum()
    assert c["retry_false_range"] == cells.filter(like="false_range").sum()
    assert c["retry_in_progress"] == cells.filter(like="range").sum()
    assert c["retry_race"] == cells.filter(like="retry.race").sum()
    assert c["retry_precheck"] == cells.filter(like="pre_gup").sum() + cells.filter(like="post_gup").sum()
    disjoint = c["retry_in_progress"] + c["retry_seq"] + c["retry_race"] + c["retry.other"]
    assert c["retry"] == disjoint
    assert c["reference_hold_ns"] == round(c["reference_hold_ps"] / 1000)


def test_frames_have_units_for_every_column() -> None:
    storm = kp.storms.poisson(rate="1k/s", span="64KiB", hold="4us")
    run = make_run(kp.Scenario(vms=2, vcpus=3, memory="64MiB", storms=[storm]), log=5)
    for frame in (run.timeline, run.vcpus, run.clients, run.events, run.latency.histogram()):
        assert len(frame)
        assert {"vm", "vcpu"} | set(frame.attrs["units"]) >= set(frame.columns)
    assert list(run.vcpus["vm"]) == [0, 0, 0, 1, 1, 1]
    assert list(run.vcpus["vcpu"]) == [0, 1, 2] * 2
    assert list(run.timeline["time"][:3]) == [0, 1 << 20, 2 << 20]
    assert set(run.events["step"]) <= set(names.STEPS)
    assert run.memory.attrs["units"] == {"kvm_tables": "1", "kvm_table_bytes": "B"}
    assert dict(run.tries) == {1: 60, 2: 9, 3: 1}


def test_tables_are_copies_and_arrays_read_only() -> None:
    run = make_run()
    before = run.digest
    counters, vcpus, parts = run.counters, run.vcpus, run.parts
    counters["faults"] = parts["handler"] = -1
    vcpus["taken"] = -1
    assert run.faults >= 0 and run.counters["faults"] == run.faults
    assert Run(run.scenario, run.arrays, run.meta).digest == before
    with pytest.raises(ValueError, match="read-only"):
        run.arrays["parts"][0, 0] = 1


@given(st.integers(0, (1 << 53) - 1))
def test_a_time_lies_in_its_bucket_and_near_the_middle(time: int) -> None:
    bucket = histogram_bucket(time)
    low, high = bucket_bounds(bucket)
    assert low <= time < high
    assert bucket < layout.HIST_BUCKETS
    assert abs((low + high - 1) // 2 - time) <= 0.008 * time


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_those_of_the_times(times: list[int], q: float) -> None:
    counts = np.zeros(layout.HIST_BUCKETS, dtype=np.int64)
    for time in times:
        counts[histogram_bucket(time)] += 1
    latency = Latency(counts, max(times))
    exact = sorted(times)[max(1, math.ceil(q * len(times))) - 1]
    assert latency.quantile(q) == pytest.approx(exact, rel=0.01, abs=1)
    assert latency.mean == pytest.approx(sum(times) / len(times), rel=0.01, abs=1)
    assert latency.quantile(1) <= latency.max == max(times)
    assert latency.histogram()["count"].sum() == latency.count == len(times)


def test_no_fault_has_no_latency() -> None:
    latency = Latency(np.zeros(layout.HIST_BUCKETS, dtype=np.int64), 0)
    assert math.isnan(latency.mean) and math.isnan(latency.quantile(0.5))
    assert len(latency.histogram()) == 0
    with pytest.raises(InputError, match="nearest is 1"):
        latency.quantile(1.5)


def test_every_metric_has_a_value() -> None:
    run = make_run()
    for name in METRICS:
        assert math.isfinite(run.metric(name)), name
    assert run.metric("parts.handler") == run.parts["handler"]
    assert run.metric("latency.p99.9") == run.latency.quantile(0.999)
    assert run.metric("memory.kvm_tables") == run.memory["kvm_tables"]
    assert run.metric("rmw.fault.folio/fault") == run.counters["rmw.fault.folio"] / run.faults


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pf_fixd", "pf_fixed"),
        ("latency.p101", "latency."),
        ("latency.maen", "latency.mean"),
        ("memory.kvm_tabels", "memory.kvm_tables"),
        ("parts.handle", "parts.handler"),
    ],
)
def test_an_unknown_metric_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=near):
        make_run().metric(name)


def test_a_file_gives_back_the_run(tmp_path: Path) -> None:
    storm = kp.storms.poisson(rate="1k/s", span="64KiB", hold="4us")
    path = kp.FaultPath("v6.1", reference="early_put")
    run = make_run(kp.Scenario(vms=2, vcpus=2, memory="64MiB", fault_path=path, storms=[storm]), log=9)
    file = tmp_path / "run.parquet"
    run.to_parquet(file)
    back = load(file)
    assert back.scenario == run.scenario
    assert back.digest == run.digest
    assert back.meta == run.meta and back.version == run.version and back.seed == run.seed
    assert back.events.equals(run.events)
    for name, array in run.arrays.items():
        assert np.array_equal(back.arrays[name], array), name
    assert [other.name for other in tmp_path.iterdir()] == ["run.parquet"]


def test_a_file_says_what_it_holds_without_us(tmp_path: Path) -> None:
    run = make_run()
    run.to_parquet(tmp_path / "run.parquet")
    metadata = pq.read_schema(tmp_path / "run.parquet").metadata
    assert metadata[b"kvmpfn.digest"].decode() == run.digest
    assert metadata[b"kvmpfn.seed"] == b"1"
    assert metadata[b"kvmpfn.version"].decode() == kp.__version__
    assert json.loads(metadata[b"kvmpfn.scenario"])["vcpus"] == 4
    assert json.loads(metadata[b"kvmpfn.columns"])["parts"] == list(names.PARTS)


def test_the_same_run_makes_the_same_bytes(tmp_path: Path) -> None:
    make_run().to_parquet(tmp_path / "a.parquet")
    make_run().to_parquet(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_changed_file_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "run.parquet"
    make_run().to_parquet(file)
    table = pq.read_table(file)
    metadata = table.schema.metadata
    for key, text, message in (
        (b"kvmpfn.digest", b"0" * 64, "damaged"),
        (b"kvmpfn.scenario", metadata[b"kvmpfn.scenario"].replace(b'"seed":1', b'"seed":2'), "damaged"),
        (b"kvmpfn.meta", metadata[b"kvmpfn.meta"].replace(b"12345", b"12346"), "damaged"),
        (b"kvmpfn.schema", b"99", r"schema: 99, written by .*; nearest is 1$"),
        (b"kvmpfn.columns", b"{}", "simulate again"),
    ):
        assert metadata[key] != text
        pq.write_table(table.replace_schema_metadata(metadata | {key: text}), file)
        with pytest.raises(InputError, match=message):
            load(file)
    pq.write_table(table.replace_schema_metadata({}), file)
    with pytest.raises(InputError, match="not a run of kvmpfn"):
        load(file)
    file.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        load(file)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "absent.parquet")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        make_run().to_parquet(tmp_path / "absent" / "run.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        make_run().to_parquet(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_html_is_escaped_and_has_no_script() -> None:
    path = kp.FaultPath("v6.1", name="<script>alert(1)</script>")
    run = make_run(kp.Scenario(memory="64MiB", fault_path=path), died=[0], assumed=["a<b"])
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            seen.append(tag)

    Tags().feed(run._repr_html_())
    assert set(seen) == {"table", "caption", "tbody", "tr", "th", "td"}


def test_texts_tell_what_matters() -> None:
    host = kp.Host.scaled("icelake_sp_2s", sockets=8)
    run = make_run(kp.Scenario(host=host, vms=2, vcpus=3, memory="64MiB"), died=[1])
    text = repr(run)
    assert "2 VMs of 3 vCPUs" in text and "extrapolated" in text and "1 of 2 VMs died" in text
    summary = run.summary()
    for word in (
        "retried for",
        "time in faults",
        "mmu_lock",
        "assumed costs: zap_leaf",
        "unsafe",
        "ended: 1",
    ):
        assert word in summary
    assert json.loads(json.dumps(run.to_dict(), allow_nan=False))["faults"] == run.faults


def test_the_digest_is_of_the_results_and_not_of_the_log(stormy: Run) -> None:
    plain = kp.simulate(stormy.scenario)
    assert plain.digest == stormy.digest
    assert len(plain.events) == 0 and len(stormy.events) == 50
    assert kp.simulate(stormy.scenario.replace(seed=2)).digest != stormy.digest


def test_a_real_run_holds_its_identities(stormy: Run) -> None:
    c, v = stormy.counters, stormy.vcpus
    assert c["retry"] > 0
    outcomes = c["pf_fixed"] + c["pf_spurious"] + c["pf_emulate"] + c["pf_error"] + c["retry"]
    assert c["pf_taken"] == outcomes
    assert stormy.parts.sum() == v["faults"].sum()
    assert (v["end"] - v["start"] == v["guest"] + v["faults"] + v["kicked"]).all()
    assert stormy.timeline["taken"].sum() == c["pf_taken"]
    assert stormy.tries.sum() == stormy.latency.count
    assert stormy.latency.quantile(1) == pytest.approx(stormy.latency.max, rel=0.008)
    mean = stormy.parts.sum() / stormy.latency.count
    assert stormy.latency.mean == pytest.approx(mean, rel=0.05)


def test_a_real_run_travels(stormy: Run, tmp_path: Path) -> None:
    stormy.to_parquet(tmp_path / "run.parquet")
    assert kp.load(tmp_path / "run.parquet").digest == stormy.digest
    assert pickle.loads(pickle.dumps(stormy)).digest == stormy.digest
    assert stormy.summary() and stormy._repr_html_()
