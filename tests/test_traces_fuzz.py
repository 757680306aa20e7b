"""Mutations of recorded lines: no crash, no growing memory, each line accounted for, both ways the same."""

from __future__ import annotations

import gzip
import random
import resource
from pathlib import Path

import pytest
from recorded_lines import EXITS, accounted, records, same

from kvmpfn.traces.source import Source

SEED = 20261127
FILE = 1000
"""Mutations that are read as one file."""

OTHERS = (
    "# entries-in-buffer/entries-written: 5/12   #P:8",
    "CPU:2 [LOST 3 EVENTS]",
    "   qemu 123 [001]  5.0: PERF_RECORD_LOST lost 500",
    "trace.dat: cpus=8",
    "  qemu-7 [003]123456789012346: kvm_entry: vcpu 0 rip 0x1",
    "  qemu-7 [003] 5.000002: print:                tracing_mark_write: three",
    "\tffffffffc0a1b2c3 vmx_vcpu_run+0x123 ([kvm_intel])",
    " => some_symbol",
    " qemu-5786  [029] ..... 36.971200: fast_page_fault: vcpu 4 gva 20fe612 error_code F "
    "sptep 00000000fd98c937 old 0x61000034d4fe877 new 61000034d4fe877 spurious 1 fixed 0",
    " qemu-5786  [029] ..... 36.971200: kvm_unmap_hva_range: mmu notifier unmap range: 0x7f0000 -- 0x7f1000",
    " qemu-5786    [029] ..... 36.971200: kvm_page_fault: address",
    "fffffff0 error_code 784",
    " 86.928 (     ): CPU 3/KVM/4145 kvm:kvm_page_fault(guest_rip: 7, fault_address: 4096, error_code: 2)",
)
INSERTS = (
    b"\0",
    b"\0" * 9,
    b"\r",
    b"\t",
    b" ",
    b"\n",
    b"=",
    b"=\n",
    b"=3D",
    b"> ",
    b"[",
    b"]",
    b"-",
    b": ",
    b":",
    b"0x",
)


def mutated(draw: random.Random, lines: list[bytes]) -> bytes:
    """Flip, cut, splice, double and litter a line."""
    line = bytearray(draw.choice(lines))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        kind, at = draw.randrange(9), draw.randrange(len(line) + 1)
        if kind == 0 and line:
            line[draw.randrange(len(line))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del line[at:]
        elif kind == 2:
            del line[at : at + draw.randrange(8)]
        elif kind == 3:
            other = draw.choice(lines)
            line[at:] = other[draw.randrange(len(other) + 1) :]
        elif kind == 4:
            line[at:at] = line[: draw.randrange(len(line) + 1)]
        elif kind == 5:
            line[at:at] = draw.choice((b"9", b"f", b"0")) * draw.randrange(1, 40)
        elif kind == 6:
            line[at:at] = draw.choice(INSERTS)
        elif kind == 7:
            line[at:at] = "".join(
                chr(draw.randrange(32, 0x2FFF)) for _ in range(draw.randrange(1, 6))
            ).encode()
        else:
            line += b"\n" + line
    return bytes(line)


def check(lines: list[bytes], cases: int, draw: random.Random) -> None:
    """Read mutations by the thousand, each thousand both ways."""
    peak = None
    for number in range(cases // FILE):
        data = b"\n".join(mutated(draw, lines) for _ in range(FILE))
        clock = {"clock_hz": 1e9} if number % 3 == 0 else {}
        one, other = records(data, **clock), records(data, fast=False, **clock)
        assert accounted(one) and accounted(other), number
        assert one.lines == data.count(b"\n") + (not data.endswith(b"\n")), number
        assert same(one, other), number
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = used if peak is None else peak
        assert used < peak + (64 << 10), "KiB more than after the first thousand"


def own_lines(folder: Path) -> list[bytes]:
    lines = [line.encode() for line in (*EXITS.values(), *OTHERS)] * 5
    for path in sorted(folder.glob("*/st-v1-*.trace.gz")):
        lines += gzip.decompress(path.read_bytes()).split(b"\n")[:300]
    return lines


def test_some_mutations(repo_root: Path) -> None:
    check(own_lines(repo_root / "data" / "recordings"), 3 * FILE, random.Random(SEED + 1))


@pytest.mark.slow
def test_many_mutations(repo_root: Path) -> None:
    check(own_lines(repo_root / "data" / "recordings"), 100_000, random.Random(SEED))


@pytest.mark.slow
def test_mutations_of_public_recordings(recordings: Path) -> None:
    lines: list[bytes] = []
    for path in sorted((recordings / "public").iterdir()):
        lines += b"".join(block for block, _ in Source(path).blocks()).split(b"\n")[:200]
    check(lines, 50_000, random.Random(SEED))
