"""bpftrace prints: by the user's pattern, and by the one for docs/kvm-faults.bt."""

from __future__ import annotations

import gzip
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kvmpfn.traces import read_bpftrace, read_trace
from kvmpfn.traces.events import bpftrace
from kvmpfn.traces.events.bpftrace import BLOCK, DAY, PRESET, bpftrace_blocks, is_preset
from kvmpfn.traces.events.records import ABSENT, CODE, EVENT_FIELDS, Records
from kvmpfn.units import InputError

STUCK = r"(?P<time>\d\d:\d\d:\d\d:\d+) tid\[(?P<tid>\d+)\] .* rip (?P<rip>\w+) .* gpa = (?P<gpa>\w+)"
"""The lines of a published script that looked for vCPUs that fault in place."""

GPA = r"(?P<time>\d+) (?P<gpa>\w+)"

# Printed by bpftrace 0.17 with docs/kvm-faults.bt in the machine of data/README.md (Debian's Linux 6.1.192).
PRINTED = """\
Attaching 7 probes...
52550780170 0 156 kvm_page_fault vcpu 0 rip 0x1000 address 0x2000 error_code 0x200000006 (kvmstorm)
52559419139 0 156 kvm_mmu_spte_requested gfn 0x2 pfn 0x1aeb3 level 1 (kvmstorm)
52560075530 0 156 pf_ret ret 4 (kvmstorm)
Lost 37 events
52561000000 1 161 kvm_unmap_hva_range start 0x7fdcbbc00000 end 0x7fdcbbc40000 (kvmstorm)
52561100000 1 161 inv_start_ret ret 0 (kvmstorm)
52561200000 1 161 inv_end (kvmstorm)
52561300000 1 161 inv_end_ret (CPU 0/KVM (2))


"""


def read(tmp_path: Path, text: str, *arguments: str, **options: object) -> Records:
    path = tmp_path / "printed.txt"
    path.write_text(text)
    records = read_bpftrace(path, *arguments, **options)  # type: ignore[arg-type]
    whole(records)
    return records


def whole(records: Records) -> None:
    assert len(records) + records.skipped.total() == records.lines
    assert len({len(getattr(records, name)) for name in ("time_ps", "pid", "cpu", "event", *"abcd")}) == 1


def test_the_preset(tmp_path: Path) -> None:
    records = read(tmp_path, PRINTED)
    assert records.time_ps[0] == 52_550_780_170_000
    assert [list(CODE)[code] for code in records.event] == [
        "kvm_page_fault",
        "kvm_mmu_spte_requested",
        "pf_ret",
        "kvm_unmap_hva_range",
        "inv_start_ret",
        "inv_end",
        "inv_end_ret",
    ]
    assert records.a.tolist() == [0, 2, 4, 0x7FDCBBC00000, 0, 0, 0]
    assert records.b.tolist() == [0x1000, 0x1AEB3, 0, 0x7FDCBBC40000, 0, 0, 0]
    assert records.d[0] == 0x200000006 and records.c[:2].tolist() == [0x2000, 1]
    assert records.pid.tolist() == [156] * 3 + [161] * 4 and records.cpu.tolist() == [0] * 3 + [1] * 4
    assert records.tasks == {156: "kvmstorm", 161: "CPU 0/KVM (2)"}
    assert records.lost == 37
    assert records.skipped == {"of bpftrace itself": 1, "lost events": 1, "blank": 2}
    assert not records.guessed


def test_a_trace_of_it(tmp_path: Path, recordings: Path) -> None:
    path = tmp_path / "whatever.bin.gz"
    path.write_bytes(gzip.compress(PRINTED.encode()))
    (tmp_path / "whatever.bin.txt").write_text(PRINTED)
    trace = read_trace(path, kernel="6.1")
    assert trace.statistics is None
    (fault,) = trace.faults.to_dict("records")
    assert (fault["outcome"], fault["gfn"], fault["kind"], fault["level"]) == ("FIXED", 2, "write", 1)
    assert trace.lost == 37 and len(trace.invalidations) == 1
    (invalidation,) = trace.invalidations.to_dict("records")
    assert invalidation["end_ps"] - invalidation["start_ret_ps"] == 100_000_000
    stuck = recordings / "public" / "lore-kvm-ewheeler-20230823-bpftrace-v2-stuck.txt"
    assert not is_preset(stuck)
    trace = read_trace(read_bpftrace(stuck, STUCK, time="%H:%M:%S:%f"))
    assert set(trace.faults["gfn"]) == {0x294} and len(trace.faults) == 39


def test_the_preset_is_the_script(repo_root: Path) -> None:
    """Each printf of the script, with numbers for its conversions, is a line of the preset."""
    script = (repo_root / "docs" / "kvm-faults.bt").read_text()
    formats = re.findall(r'printf\("(.*?)\\n"', script)
    assert len(formats) == 7
    for form in formats:
        line = re.sub(r"%ll[ux]|%[du]", "12", form).replace("%s", "CPU 0/KVM")
        found = re.search(PRESET, line)
        assert found and found["event"] in CODE and found["comm"] == "CPU 0/KVM"
        for field in EVENT_FIELDS[found["event"]]:
            assert found[field], (form, field)


def test_a_published_recording(recordings: Path) -> None:
    path = recordings / "public" / "lore-kvm-ewheeler-20230823-bpftrace-v2-stuck.txt"
    records = read_bpftrace(path, STUCK, time="%H:%M:%S:%f")
    whole(records)
    assert (len(records), records.lines) == (39, 45)
    assert records.skipped == {"of bpftrace itself": 1, "comment": 1, "blank": 2, "left out": 1, "map": 1}
    assert set(records.c.tolist()) == {0x294A41} and set(records.b.tolist()) == {0xFFFFFFFF80094A41}
    assert set(records.pid.tolist()) == {553909} and set(records.a.tolist()) == {ABSENT}
    assert records.time_ps[0] == ((30 * 60 + 31) * 10**6 + 347560) * 10**6
    assert records.time_ps[-1] == ((30 * 60 + 59) * 10**6 + 186697) * 10**6
    assert records.guessed == {"access unknown": 39}


def test_days_go_on_at_midnight(tmp_path: Path) -> None:
    times = [
        "23:59:59:900000",
        "00:00:00:100000",
        "23:59:59:990000",
        "00:00:00:2",
        "12:00:00:0",
        "23:59:59:0",
    ]
    text = "".join(f"{time} gpa 1000\n" for time in [*times, "00:00:01:0"])
    records = read(tmp_path, text, r"(?P<time>\S+) gpa (?P<gpa>\w+)", time="%H:%M:%S:%f")
    last = 86399 * 10**12
    assert records.time_ps.tolist() == [
        last + 9 * 10**11,
        DAY + 10**11,
        last + 99 * 10**10,
        DAY + 2 * 10**11,
        DAY + DAY // 2,
        DAY + last,
        2 * DAY + 10**12,
    ]


def test_units_and_far_times(tmp_path: Path) -> None:
    pattern = r"^(?P<time>[\d.]+) (?P<gfn>\w+) (?P<access>\w)"
    records = read(tmp_path, "1.5 10 r\n2 11 W\n3 12 x\n3 12 q\n", pattern, time="ms", decimal=("gfn",))
    assert records.time_ps.tolist() == [15 * 10**8, 2 * 10**9, 3 * 10**9]
    assert records.c.tolist() == [10 << 12, 11 << 12, 12 << 12]
    assert records.d.tolist() == [0x81, 0x82, 0x84]
    assert records.guessed == {"error code made of the access": 3}
    assert records.skipped == {"fields not understood: kvm_page_fault": 1}
    year = 365 * 86400
    far = read(tmp_path, f"{year * 10**9 + 7} 1 r\n{year * 10**9 + 5} 1 r\n", pattern)
    assert far.origin_s == year and far.time_ps.tolist() == [7000, 5000]


def test_events_by_other_names(tmp_path: Path) -> None:
    text = "1 FAULT 2000\n2 DONE -14\n3 OTHER 1\n4 DONE\n5 kvm_entry 3\n"
    pattern = r"(?P<time>\d+) (?P<event>\w+)(?: (?P<gpa>\d{4})| (?P<ret>-\d+)| (?P<vcpu>\d))?"
    records = read(tmp_path, text, pattern, events={"FAULT": "kvm_page_fault", "DONE": "pf_ret"}, time="us")
    assert records.event.tolist() == [CODE["kvm_page_fault"], CODE["pf_ret"], CODE["kvm_entry"]]
    assert records.a.tolist() == [ABSENT, ABSENT - 13, 3]
    assert records.skipped == {"event not used: OTHER": 1, "fields not understood: pf_ret": 1}
    assert records.pid.tolist() == [-1, -1, -1] and records.guessed == {"access unknown": 1}
    one = read(
        tmp_path,
        "9 5 EPT_VIOLATION\n8 5 HLT\n7 5 HLT\n",
        r"(?P<time>\d+) \d (?P<reason>\w+)",
        event="kvm_exit",
    )
    assert one.b.tolist() == [0, 1, 1] and one.reasons == ["EPT_VIOLATION", "HLT"]


def test_maps_and_histograms(tmp_path: Path) -> None:
    own = """\
Attaching 1 probe...
kvm.bt:3:1-20: WARNING: a probe is not traceable
ERROR: Unknown error
@hits[12, CPU 0/KVM]: 77
@ns:
[0]                    3 |@@@                                                 |
[16, 32)              12 |@@@@@@@@@@@@                                        |
[1K, 2K)             512 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|
(..., 0)               5 |@                                                   |
WARNING: Lost 5 events
hello
"""
    records = read(tmp_path, own + "1 1000\n", r"^(?P<time>\d+) (?P<gpa>\w+)$")
    assert records.lost == 5
    assert records.skipped == {"of bpftrace itself": 3, "map": 6, "lost events": 1, "not the pattern": 1}


def test_blocks_are_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    number = BLOCK + BLOCK // 2
    path.write_text("".join(f"{place} 1 7 pf_ret ret {place % 6} (a b)\n" for place in range(number)))
    blocks = list(bpftrace_blocks(path, progress=False))
    assert [block.lines for block in blocks] == [BLOCK, BLOCK // 2]
    joined = Records.join(blocks)
    assert joined.lines == len(joined) == number
    assert (joined.time_ps == np.arange(number) * 1000).all()
    assert Counter(joined.a.tolist())[4] == number // 6


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        (r"(?P<time>\d+", {}, "pattern: missing"),
        (r"(\d+) (?P<gpa>\w+)", {}, "pattern: no group <time>; nearest valid"),
        (r"(?P<time>\d+) (?P<gpaa>\w+)", {}, "unknown group <gpaa>; nearest valid: <gpa>"),
        (r"(?P<time>\d+) (?P<tid>\d+)", {}, "kvm_page_fault needs a group <address>"),
        (GPA, {"event": "pf_ret"}, "pf_ret needs a group <ret>"),
        (GPA, {"event": "pf_rat"}, "event: 'pf_rat' is no event; nearest valid: pf_ret"),
        (GPA, {"events": {"a": "b"}}, "event: 'b' is no event"),
        (GPA, {"time": "nsec"}, "time: 'nsec' is no unit of time; nearest valid: ns"),
        (GPA, {"time": "%H:%q"}, "time: %q is not read"),
        (GPA, {"decimal": ("gfn",)}, "decimal: no group <gfn>; nearest valid: gpa"),
        (r"(?P<time>\d+)s (?P<gpa>\w+)", {}, "no line matches the pattern; nearest valid: one for '525507"),
    ],
)
def test_what_cannot_be(tmp_path: Path, pattern: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, PRINTED, pattern, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_line_takes_no_time(tmp_path: Path) -> None:
    text = "9" * 60000 + "\n1 1000\n"
    assert read(tmp_path, text, r"(?P<time>\d+) (?P<gpa>\d+)").skipped == {"too long": 1}


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_bpftrace(tmp_path / "missing")
    with pytest.raises(InputError, match="no line matches"):
        read(tmp_path, "")


def test_damaged_files_do_no_harm(tmp_path: Path) -> None:
    """2,000 files, damaged at random by a fixed seed: each is read or refused, no line is lost."""
    chance = random.Random(20250302)
    path, refused = tmp_path / "damaged", 0
    original = PRINTED.encode()
    for _ in range(2000):
        data = bytearray(original)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(4):
                case 0:
                    data[at : at + chance.randint(0, 60)] = b""
                case 1:
                    data[at:at] = chance.choice(
                        [b"9" * 30, b"9" * 5000, b"f" * 17, b"\0", b"-", "٣".encode(), b"\n"]
                    )
                case 2:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case 3:
                    data[at:at] = original[chance.randrange(len(original)) :]
        path.write_bytes(data)
        try:
            whole(read_bpftrace(path))
        except InputError:
            refused += 1
    assert refused < 200


def test_lines_read_at_once_are_those_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a number has no place in 64 bits, a field is missing, or an event is not used."""
    clean = [line for line in PRINTED.splitlines() if line]
    odd = [
        "52561400000 1 161 pf_ret ret 18446744073709551616 (kvmstorm)",
        "52561400000 1 161 pf_ret (kvmstorm)",
        "52561400000 1 161 pf_ret ret -1 (kvmstorm)",
        "52561400000 1 161 some_other ret 1 (kvmstorm)",
        "52561400000 1 99999999999 inv_end (kvmstorm)",
        "99999999999999999999 1 161 inv_end (kvmstorm)",
        "52561400000 1 161 kvm_mmu_spte_requested gfn 0x2 pfn 0x1aeb3 level 0x1 (kvmstorm)",
    ]
    texts = ["\n".join(clean), *("\n".join([*clean, line]) for line in odd)]
    at_once = [read(tmp_path, text) for text in texts]

    def refuse(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(bpftrace._Block, "_take_columns", refuse)
    for text, one in zip(texts, at_once, strict=True):
        other = read(tmp_path, text)
        for name in ("time_ps", "pid", "cpu", "event", *"abcd"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), (text, name)
        assert (one.skipped, one.tasks, one.lost) == (other.skipped, other.tasks, other.lost)
        assert (one.guessed, one.origin_s) == (other.guessed, other.origin_s)
