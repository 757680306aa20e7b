"""Tables that a real KVM linked, beside the ledger's and a replay's: equal, recording by recording."""

from __future__ import annotations

import gzip
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import kvmpfn as kp
from kvmpfn.plots.memory import plot_recorded_tables
from kvmpfn.traces import Trace
from kvmpfn.units import InputError
from kvmpfn.validation import counted_tables, linked_tables, page_tables, read_locked

KERNELS = ("6.1", "6.16")
RUNS = ("dht-v1", "dt2-v1", "st-v1-r-1", "st-v1-r100", "st-v1-r1000")


@pytest.fixture(scope="module")
def frame(repo_root: Path) -> pd.DataFrame:
    """All recordings of the checkout."""
    folder = repo_root / "data" / "recordings"
    return page_tables(
        kp.read_trace(folder / kernel / f"{run}.trace.gz") for kernel in KERNELS for run in RUNS
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("run", "tables"), [("dt2-v1", [8 + 1, 2, 1, 1]), ("dht-v1", [0 + 1, 2, 1, 1])])
def test_each_level_by_hand(repo_root: Path, kernel: str, run: str, tables: list[int]) -> None:
    """16 MiB at 1 GiB (or 64 MiB of huge pages) and five pages below 2 MiB, under a root of five levels."""
    counts = linked_tables(kp.read_trace(repo_root / "data" / "recordings" / kernel / f"{run}.trace.gz"))
    assert list(counts.index) == [1, 2, 3, 4]
    assert list(counts["linked"]) == list(counts["pages"]) == tables
    assert list(counts["leaves"]) == ([4096 + 5, 0, 0, 0] if run == "dt2-v1" else [5, 32, 0, 0])
    assert not counts[["unlinked", "zapped"]].any(axis=None)


def test_recorded_is_predicted_is_simulated(frame: pd.DataFrame) -> None:
    assert len(frame) == len(KERNELS) * len(RUNS)
    assert (frame["measured"] == frame["predicted"]).all()
    assert (frame["measured"] == frame["simulated"]).all()
    assert (frame["measured"] <= frame["bound"]).all()
    assert (frame["predicted/measured"] == 1).all() and (frame["simulated/measured"] == 1).all()
    cut = frame.xs("st-v1-r-1", level="recording")
    assert (cut["measured"] < cut["bound"]).all()


def test_zaps_keep_tables(frame: pd.DataFrame) -> None:
    assert (frame.xs("st-v1-r1000", level="recording")["zapped"] > 8000).all()
    assert (frame["unlinked"] == 0).all()


def test_the_figure_shows_residuals(frame: pd.DataFrame) -> None:
    rows = frame.reset_index()
    rows.loc[0, "simulated"] += 2
    fig = plot_recorded_tables(rows)
    shown = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert shown == ["0 +2"] + ["0 0"] * (len(rows) - 1)
    plt.close(fig)


@pytest.mark.parametrize("kernel", KERNELS)
def test_atomics_that_only_a_new_table_executes(repo_root: Path, kernel: str) -> None:
    frame = counted_tables(read_locked(repo_root / "data" / "recordings" / kernel / "lock.txt"), "64MiB")
    wanted = {"tables below the root": 5, "host deposited tables": 32}
    if kernel == "6.16":
        wanted["calls for a root"] = 1
    assert frame["predicted"].to_dict() == wanted
    # 37 faults, a share printed to a thousandth
    assert (frame["predicted"] - frame["measured"]).abs().max() < 37 * 0.0005 + 1e-9


def test_the_full_length_recordings(recordings: Path) -> None:
    files = [
        recordings / "npt" / folder / f"{run}.trace.gz"
        for folder, runs in {
            "two61": ("dt1-v1",),
            "two616": ("dt1-v1",),
            "five61": ("dt-v4p", "dt-v4s"),
            "five616": ("dt-v4p", "dt-v4s"),
        }.items()
        for run in runs
    ]
    frame = page_tables(kp.read_trace(file) for file in files)
    assert (frame["measured"] == frame["predicted"]).all()
    assert (frame["measured"] == frame["simulated"]).all()


LINE = (
    "vm-1 [000] {time}: kvm_tdp_mmu_spte_changed: gfn {gfn:x} level {level} old_spte {old:x} new_spte {new:x}"
)


def made_up(folder: Path, changes: list[tuple[int, int, int, int]]) -> Trace:
    """A recording of nothing but changes of entries: gfn, level, old, new."""
    lines = [
        LINE.format(time=f"1.{number:06d}", gfn=gfn, level=level, old=old, new=new)
        for number, (gfn, level, old, new) in enumerate(changes)
    ]
    file = folder / "made-up.trace.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    return kp.read_trace(file, kernel="6.1")


def test_what_counts_as_a_table(tmp_path: Path) -> None:
    table, again, huge, leaf = 0x1827, 0x1827, 0x200EE7, 0x3E67
    counts = linked_tables(
        made_up(
            tmp_path,
            [
                (0, 3, 0, table),
                (0, 3, table, 0x1807),  # other bits, the same table
                (0, 2, 0, huge),
                (512, 2, 0, again),  # in a page that another table lay in
                (512, 1, 0, leaf),
                (512, 1, leaf, 0x3E27),  # rewritten: neither new nor zapped
                (512, 1, 0x3E27, 0),
                (512, 2, again, huge),
                (0, 2, huge, 0x5A0),  # frozen: not present
            ],
        )
    )
    assert counts.loc[1].to_dict() == {"linked": 1, "unlinked": 1, "pages": 1, "leaves": 1, "zapped": 1}
    assert counts.loc[2].to_dict() == {"linked": 1, "unlinked": 0, "pages": 1, "leaves": 2, "zapped": 1}


def test_a_recording_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data slot told"):
        page_tables([made_up(tmp_path, [(0, 2, 0, 0x1827)])])
    file = tmp_path / "faults.trace"
    file.write_text("vm-1 [000] 1.0: kvm_page_fault: vcpu 0 rip 0x1 address 0x1000 error_code 0x6\n")
    with pytest.raises(InputError, match="no entry changed in it"):
        linked_tables(kp.read_trace(file, kernel="6.1"))
