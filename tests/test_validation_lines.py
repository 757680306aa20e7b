"""The line model alone against single-word benchmarks and batched references."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpfn.hosts import Host
from kvmpfn.validation import read_table
from kvmpfn.validation.lines import hammer, mmap_readers, references


@pytest.fixture
def published(repo_root: Path) -> Path:
    return repo_root / "data" / "published"


def test_one_thread_pays_its_own_operation() -> None:
    host = Host.load("icelake_sp_2s").with_cost("own_add", 6).with_cost("own_cas", 11)
    assert hammer(host, 1, "add") == pytest.approx(6.0)
    assert hammer(host, 1, "cas") == pytest.approx(11.0)


def test_many_threads_pay_a_hand_off_each() -> None:
    host = Host.load("icelake_sp_2s").with_cost("llc_latency", 40).with_cost("llc_occupancy", 20)
    host = host.with_cost("cas_factor", 3)
    for threads in (2, 5, 16):
        assert hammer(host, threads, "add") == pytest.approx(20 * threads)
        assert hammer(host, threads, "cas") == pytest.approx(60 * threads)
    assert hammer(host.with_cost("llc_occupancy", 5), 4, "add") == pytest.approx(40), "latency, not busy"


@pytest.mark.parametrize("machine", ["Skylake i7-6700HQ", "Ice Lake i5-1035G4", "Graviton2 (Neoverse N1)"])
def test_adds_on_one_word_grow_with_the_threads(published: Path, machine: str) -> None:
    table = read_table(published / "downs.csv")
    rows = table[(table["machine"] == machine) & (table["operation"] == "add")].set_index("threads")
    on = 3 if rows.index.max() == 4 else 4
    hand_off = rows.loc[on, "ns_per_op"] / on
    host = Host.load("icelake_sp_2s").with_cost("llc_occupancy", round(hand_off, 3))
    host = host.with_cost("llc_latency", round(2 * hand_off, 3))
    for threads in rows.index[1:]:
        assert hammer(host, threads, "add") == pytest.approx(rows.loc[threads, "ns_per_op"], rel=0.1)


def test_batched_references_save_what_was_measured(published: Path) -> None:
    """One cmpxchg a page for a get, and one more add for a pin; the processor is not stated."""
    table = read_table(published / "martins.csv")
    base = table["batched_ms"] / table["pages"] * 1e6
    measured = table["each_page_ms"] / table["pages"] * 1e6
    for row, pinned in ((0, False), (1, True), (2, False), (8, True)):
        ours = [base[row] + references(host, pinned=pinned) for host in ("icelake_sp_2s", "skylake_sp_2s")]
        assert min(ours) < 1.05 * measured[row]
        assert max(ours) > 0.9 * measured[row]


def test_threads_of_one_process_stop_where_they_did(published: Path) -> None:
    chip = read_table(published / "core_to_core.csv").set_index("machine").loc["Xeon E5-2695 v4 (Broadwell)"]
    host = Host.scaled("icelake_sp_2s", cores=16)
    for distance in ("llc", "socket", "remote"):
        ns = float(chip["remote_ns" if distance == "remote" else "socket_ns"])
        host = host.with_cost(f"{distance}_latency", ns).with_cost(f"{distance}_occupancy", ns)
    table = read_table(published / "will_it_scale.csv")
    rows = table[table["test"] == "page_fault3"].set_index(["mode", "tasks"])["ops_per_s"]
    work = 16 / rows["processes", 16] * 1e9 - 18.3
    for tasks in (16, 24, 48):
        assert mmap_readers(host, tasks, work) == pytest.approx(rows["threads", tasks], rel=0.2)
    assert mmap_readers(host, 1, work) == pytest.approx(rows["processes", 16] / 16, rel=0.02)
