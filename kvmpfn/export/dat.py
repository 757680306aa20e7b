"""Events as the binary file of trace-cmd, which trace-cmd report and KernelShark read: trace.dat, version 6.

The file is what trace-cmd.dat.v6(5) says: headers, the format of each event, then for each CPU the pages of a
ring buffer, whose layout stands in the file itself, as in tracefs (events/header_page and header_event).
Times are in ns, cut from picoseconds; events of two CPUs in one ns are told in the order of the CPUs.
"""

from __future__ import annotations

import struct
from typing import IO

from kvmpfn.export.ftrace import Task
from kvmpfn.export.tracepoints import TRACEPOINTS, TYPES, Tracepoint

__all__ = ["Dat"]

PAGE = 4096
PAGE_HEADER = struct.Struct("<QQ")
COMMON = struct.Struct("<HBBi")
HEADER = struct.Struct("<I")
FIRST_ID = 1
DELTA_BITS = 27
TIME_EXTEND = 30

HEADER_PAGE = """\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;
"""
HEADER_EVENT = """\
# compressed entry header
\ttype_len    :    5 bits
\ttime_delta  :   27 bits
\tarray       :   32 bits

\tpadding     : type == 29
\ttime_extend : type == 30
\ttime_stamp : type == 31
\tdata max type_len  == 28
"""
COMMON_FIELDS = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
"""

NUMBERS = {name: number for number, name in enumerate(TRACEPOINTS, FIRST_ID)}
RECORDS = {
    name: struct.Struct("<" + "".join(TYPES[kind][1] for kind, _ in point.fields))
    for name, point in TRACEPOINTS.items()
}


class Dat:
    """Packs events into the pages of each CPU; a `kvmpfn.export.ftrace.Sink`.

    Parameters
    ----------
    pages : binary file
        For pages that are full, to be read back.
    """

    def __init__(self, pages: IO[bytes]) -> None:
        self.pages = pages
        self.written = 0
        self.of_cpu: dict[int, list[int]] = {}
        self.open: dict[int, bytearray] = {}
        self.last: dict[int, int] = {}
        self.names: dict[int, str] = {}

    def event(self, t: int, task: Task, name: str, values: tuple[int, ...]) -> None:
        """Append an event to its CPU's page."""
        ns, cpu = t // 1000, task.cpu
        self.names[task.pid] = task.comm
        record = COMMON.pack(NUMBERS[name], 0, 0, task.pid) + RECORDS[name].pack(*values)
        record += bytes(-len(record) % 4)
        page = self.open.get(cpu)
        if page is None or len(page) + len(record) + 3 * HEADER.size > PAGE:
            if page is not None:
                self._flush(cpu)
            page = self.open[cpu] = bytearray(PAGE_HEADER.pack(ns, 0))
            self.last[cpu] = ns
        delta = ns - self.last[cpu]
        self.last[cpu] = ns
        if delta >> DELTA_BITS:
            page += HEADER.pack(TIME_EXTEND | (delta & (1 << DELTA_BITS) - 1) << 5)
            page += HEADER.pack(delta >> DELTA_BITS)
            delta = 0
        page += HEADER.pack(len(record) // 4 | delta << 5) + record

    def _flush(self, cpu: int) -> None:
        """Put a page away: its header says how much of it is used."""
        page = self.open.pop(cpu)
        PAGE_HEADER.pack_into(page, 0, PAGE_HEADER.unpack_from(page)[0], len(page) - PAGE_HEADER.size)
        self.pages.write(page.ljust(PAGE, b"\0"))
        self.of_cpu.setdefault(cpu, []).append(self.written)
        self.written += 1

    def write(self, out: IO[bytes], cpus: int) -> None:
        """Write the file.

        Parameters
        ----------
        out : binary file
            At its beginning.
        cpus : int
            Hardware threads of the host.
        """
        for cpu in sorted(self.open):
            self._flush(cpu)
        out.write(b"\x17\x08\x44tracing6\0" + struct.pack("<BBI", 0, 8, PAGE))
        for name, text in (("header_page", HEADER_PAGE), ("header_event", HEADER_EVENT)):
            out.write(name.encode() + b"\0" + _sized("<Q", text))
        out.write(struct.pack("<I", 0))  # events of ftrace itself
        systems = list(dict.fromkeys(point.system for point in TRACEPOINTS.values()))
        out.write(struct.pack("<I", len(systems)))
        for system in systems:
            formats = [_format(name, one) for name, one in TRACEPOINTS.items() if one.system == system]
            out.write(system.encode() + b"\0" + struct.pack("<I", len(formats)))
            out.writelines(_sized("<Q", text) for text in formats)
        out.write(_sized("<I", "") * 2)  # kallsyms, formats of printk
        out.write(_sized("<Q", "".join(f"{pid} {self.names[pid]}\n" for pid in sorted(self.names))))
        out.write(struct.pack("<I", cpus) + b"options  \0" + struct.pack("<H", 0) + b"flyrecord\0")
        start = -(-(out.tell() + 16 * cpus) // PAGE) * PAGE
        for cpu in range(cpus):
            size = len(self.of_cpu.get(cpu, ())) * PAGE
            out.write(struct.pack("<QQ", start if size else 0, size))
            start += size
        out.write(bytes(-out.tell() % PAGE))
        for cpu in sorted(self.of_cpu):
            for page in self.of_cpu[cpu]:
                self.pages.seek(page * PAGE)
                out.write(self.pages.read(PAGE))


def _sized(size: str, text: str) -> bytes:
    """Write a text after its length."""
    data = text.encode()
    return struct.pack(size, len(data)) + data


def _format(name: str, point: Tracepoint) -> str:
    """Write an event's format file."""
    lines, offset = "", COMMON.size
    for kind, field in point.fields:
        in_c, code = TYPES[kind]
        size = struct.calcsize("<" + code)
        lines += f"\tfield:{in_c} {field};\toffset:{offset};\tsize:{size};\tsigned:{kind[0] == 's':d};\n"
        offset += size
    told = f"{point.text}" + (f'", {point.arguments}' if point.arguments else '"')
    return f'name: {name}\nID: {NUMBERS[name]}\nformat:\n{COMMON_FIELDS}\n{lines}\nprint fmt: "{told}\n'
