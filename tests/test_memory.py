"""The byte ledger against the figures counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpfn.memory import HOST_LEVEL, Ledger, memory_ledger, reference_alternatives
from kvmpfn.memory.ledger import GIB
from kvmpfn.units import InputError


@pytest.mark.parametrize(
    ("level", "backing", "tables", "count"),
    [("4k", "anon", 2_101_248, 513), ("2m", "thp", 4_096, 1), ("1g", "hugetlb_1g", 0, 0)],
)
def test_tables_of_one_gib(level: str, backing: str, tables: int, count: int) -> None:
    ledger = memory_ledger("1GiB", level=level, backing=backing)  # type: ignore[arg-type]
    assert ledger["stage-2 tables"] == tables == count * 4096
    assert ledger["stage-2 upper tables"] == 2 * 4096
    assert ledger["table headers"] == (count + 2) * 184
    bare = ledger["table headers"] - 2 * 184
    assert bare == {513: 94_392, 1: 184, 0: 0}[count]


def test_upper_tables_grow_with_memory_and_depth() -> None:
    assert memory_ledger("1TiB")["stage-2 upper tables"] == (2 + 1) * 4096
    assert memory_ledger("1TiB", levels=5)["stage-2 upper tables"] == (2 + 1 + 1) * 4096


def test_caches_of_a_vcpu() -> None:
    ledger = memory_ledger("1GiB")
    assert ledger["vCPU caches"] == 176_320
    assert ledger["vCPU cache pointers"] == 3 * 40 * 8
    assert memory_ledger("1GiB", vcpus=64)["vCPU caches"] == 64 * 176_320
    assert memory_ledger("1GiB", mmu="shadow")["vCPU caches"] == 176_320 + 40 * 4096


def test_metadata_of_a_slot_of_one_gib() -> None:
    tdp = memory_ledger("1GiB")
    assert tdp["lpage_info"] == 2052
    assert tdp["rmap heads"] == tdp["write tracking"] == tdp["dirty bitmaps"] == 0
    shadow = memory_ledger("1GiB", mmu="shadow", dirty_logging=True)
    assert shadow["rmap heads"] == 2_101_256
    assert shadow["write tracking"] == 524_288
    assert shadow["dirty bitmaps"] == 65_536


def test_struct_page() -> None:
    assert memory_ledger("1GiB")["struct page"] == 16 << 20
    assert memory_ledger("1GiB", backing="pfnmap")["struct page"] == 0
    assert memory_ledger("1GiB", backing="pfnmap_struct_page")["struct page"] == 16 << 20
    assert memory_ledger("1GiB", backing="hugetlb_2m", hvo=True)["struct page"] == (16 << 20) // 8
    assert memory_ledger("1GiB", backing="hugetlb_1g", hvo=True)["struct page"] == 4096
    assert memory_ledger("1GiB", backing="ksm")["struct page"] == (16 << 20) // 256
    assert memory_ledger("1GiB", backing="zero_page")["struct page"] == 0
    assert memory_ledger("1GiB", backing="dax")["struct page"] == 16 << 20
    assert memory_ledger("1GiB", backing="dax", hvo=True)["struct page"] == (16 << 20) // 4


@pytest.mark.parametrize("backing", ["hugetlb_2m", "hugetlb_1g", "dax"])
def test_freeing_the_vmemmap_takes_tables_to_map_it_by_pages(backing: str) -> None:
    assert memory_ledger("1GiB", backing=backing)["vmemmap tables"] == 0
    assert memory_ledger("1GiB", backing=backing, hvo=True)["vmemmap tables"] == 8 * 4096


def test_memory_behind_the_guest() -> None:
    assert memory_ledger("1GiB").backing_bytes == GIB
    assert memory_ledger("1GiB", backing="ksm").backing_bytes == GIB // 256
    assert memory_ledger("4KiB", backing="ksm").backing_bytes == 4096
    assert memory_ledger("1GiB", backing="zero_page").backing_bytes == 0


def test_what_finds_shared_pages() -> None:
    assert memory_ledger("1GiB", backing="ksm")["KSM items"] == 64 * ((1 << 18) + (1 << 10))
    assert memory_ledger("1GiB")["KSM items"] == memory_ledger("1GiB")["page cache index"] == 0
    index = memory_ledger("1GiB", backing="page_cache")["page cache index"]
    assert index == 576 * (4096 + 64 + 1)
    assert memory_ledger("4KiB", backing="page_cache")["page cache index"] == 576


def test_logs_of_writes() -> None:
    both = memory_ledger("1GiB", vcpus=4, dirty_logging=True, pml=True)
    assert (both["dirty bitmaps"], both["dirty rings"], both["PML buffers"]) == (65_536, 0, 4 * 4096)
    ring = memory_ledger("1GiB", vcpus=4, dirty_logging=True, dirty_ring=65_536)
    assert (ring["dirty bitmaps"], ring["dirty rings"], ring["PML buffers"]) == (0, 4 << 20, 0)


def test_more_guest_address_spaces() -> None:
    one, two, many = (
        memory_ledger("1GiB", mmu="shadow", address_spaces=count)  # type: ignore[arg-type]
        for count in (1, 2, 15)
    )
    assert one["rmap descriptors"] == 0
    assert two["rmap descriptors"] == (1 << 18) * 128
    assert many["rmap descriptors"] == (1 << 18) * 2 * 128
    assert two["stage-2 tables"] == 2 * one["stage-2 tables"]
    assert two["table headers"] == 2 * one["table headers"]
    huge = memory_ledger("4GiB", mmu="shadow", level="1g", backing="hugetlb_1g", address_spaces=2)
    assert huge["rmap descriptors"] == 4 * 128
    ragged = memory_ledger(
        "4GiB", mmu="shadow", level="1g", backing="hugetlb_1g", address_spaces=2, aligned=False
    )
    assert ragged["rmap descriptors"] == (1 + 3 + 511 + 511) * 128


def test_the_bit_and_the_slot() -> None:
    assert memory_ledger("1GiB")["SPTE bit"] == 0
    assert memory_ledger("1GiB")["memslots"] == 264


def test_host_tables() -> None:
    assert memory_ledger("1GiB")["host PTE tables"] == 512 * 4096
    assert memory_ledger("1GiB")["host upper tables"] == 2 * 4096
    assert memory_ledger("1GiB", backing="thp")["host PTE tables"] == 0
    assert memory_ledger("1GiB", backing="thp")["host upper tables"] == 2 * 4096
    assert memory_ledger("1GiB", backing="thp")["host deposited tables"] == 512 * 4096
    assert memory_ledger("1GiB", backing="hugetlb_2m")["host deposited tables"] == 0
    assert memory_ledger("1GiB", backing="dax")["host deposited tables"] == 0
    assert memory_ledger("1GiB", backing="hugetlb_1g")["host upper tables"] == 4096


def test_an_unaligned_slot_pays_for_its_ends() -> None:
    assert memory_ledger("1GiB", aligned=False)["stage-2 tables"] == (513 + 2) * 4096
    assert memory_ledger("1GiB", level="2m", backing="thp", aligned=False)["stage-2 tables"] == (2 + 2) * 4096
    huge = memory_ledger("4GiB", level="1g", backing="hugetlb_1g", aligned=False)
    assert huge["stage-2 tables"] == (2 + 2) * 4096


def test_the_frame_adds_up_and_has_units() -> None:
    ledger = memory_ledger("16GiB", vcpus=64, dirty_logging=True)
    frame = ledger.frame
    assert frame["bytes"].sum() == ledger.total == sum(row.bytes for row in ledger)
    assert frame["bytes_per_gib"].sum() == pytest.approx(ledger.per_gib)
    assert set(frame.attrs["units"]) == {"bytes", "bytes_per_gib", "percent"}
    assert all(row.formula and row.source for row in ledger.rows)
    assert f"{ledger.total:,d}" in repr(ledger)
    assert f"{ledger.total:,d}" in ledger._repr_html_()


def test_alternatives_for_the_reference_bit() -> None:
    bit, bitmap, lookup = reference_alternatives("1GiB")
    assert (bit.bytes, bit.lines_per_page, bit.lines_per_2m) == (0, 0, 0)
    assert (bitmap.bytes, bitmap.lines_per_page, bitmap.lines_per_2m) == (32_768, 1, 1)
    assert (lookup.bytes, lookup.lines_per_page, lookup.lines_per_2m) == (0, 1, 512)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"guest_bytes": 4097}, "nearest is 4096"),
        ({"guest_bytes": GIB, "level": "2M"}, "nearest is '2m'"),
        ({"guest_bytes": GIB, "backing": "annon"}, "nearest is 'anon'"),
        ({"guest_bytes": GIB, "level": "2m"}, "nearest is '4k'"),
        ({"guest_bytes": GIB, "levels": 3}, "nearest is 4"),
        ({"guest_bytes": GIB, "vcpus": 0}, "nearest is 1"),
        ({"guest_bytes": GIB, "hvo": True}, "nearest is False"),
        ({"guest_bytes": GIB, "mmu": "shadow", "pml": True}, "nearest is False"),
        ({"guest_bytes": GIB, "dirty_ring": 1000}, "from 256 to 65536; nearest is 512"),
        ({"guest_bytes": GIB, "dirty_ring": 512, "pml": True}, "from 1024 to 65536; nearest is 1024"),
        ({"guest_bytes": GIB, "dirty_ring": 1 << 20}, "nearest is 65536"),
        ({"guest_bytes": GIB, "address_spaces": 2}, "only shadow paging has more; nearest is 1"),
        ({"guest_bytes": GIB, "mmu": "shadow", "address_spaces": 0}, "nearest is 1"),
        ({"guest_bytes": GIB, "level": "2m", "backing": "thp", "dirty_logging": True}, "'4k'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        memory_ledger(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_alternatives_are_for_whole_pages() -> None:
    with pytest.raises(InputError, match="nearest is 4096"):
        reference_alternatives(4097)


def test_an_unknown_structure_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="lpage_info"):
        memory_ledger("1GiB")["lpages"]


@given(
    pages=st.integers(1, 1 << 24),
    backing=st.sampled_from(sorted(HOST_LEVEL)),
    mmu=st.sampled_from(["tdp", "shadow"]),
    levels=st.sampled_from([4, 5]),
    dirty=st.booleans(),
)
def test_more_memory_never_costs_less(pages: int, backing: str, mmu: str, levels: int, dirty: bool) -> None:
    def ledger(size: int, aligned: bool) -> Ledger:
        return memory_ledger(
            size,
            backing=backing,
            mmu=mmu,
            levels=levels,
            dirty_logging=dirty,
            aligned=aligned,  # type: ignore[arg-type]
        )

    small, large = ledger(pages * 4096, True), ledger((pages + 1) * 4096, True)
    ragged = ledger(pages * 4096, False)
    for one, more, end in zip(small, large, ragged, strict=True):
        assert 0 <= one.bytes <= more.bytes
        assert one.bytes <= end.bytes
