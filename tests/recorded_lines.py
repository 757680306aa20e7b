"""One event as each tool writes it, made up from the tools' formats, and the ways to read text as records."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmpfn.traces.events.read import Reader
from kvmpfn.traces.events.records import CODE, COLUMNS, Records

EXIT = "reason EPT_VIOLATION rip 0xffffffffa0360413"
KERNEL_EXIT = (
    f"vcpu 3 {EXIT} info1 0x0000000000000d82 info2 0x0000000000000007 "
    "intr_info 0x00000000 error_code 0x00000000"
)
RAW_EXIT = (
    "exit_reason=48 guest_rip=0xffffffffa0360413 isa=1 info1=0x0000000000000d82 info2=0x0000000000000007 "
    "intr_info=0x00000000 error_code=0x00000000 vcpu_id=3"
)
ARGUMENTS = "exit_reason: 48, guest_rip: 18446744072104608787, isa: 1, info1: 3458, info2: 7, vcpu_id: 3"

EXITS = {
    "ftrace": f"       CPU 3/KVM-4145    [002] d..1.    86.581928: kvm_exit: {KERNEL_EXIT}",
    "ftrace with TGID": f"     CPU 3/KVM-4145    (   4140) [002] d..1. 86.581928: kvm_exit: {KERNEL_EXIT}",
    "ftrace of an unknown group": f" CPU 3/KVM-4145 (-------) [002] d..1. 86.581928: kvm_exit: {KERNEL_EXIT}",
    "ftrace of 4.18": f"       CPU 3/KVM-4145  [002] ....    86.581928: kvm_exit: {KERNEL_EXIT}",
    "ftrace of a lazy kernel": f"       CPU 3/KVM-4145  [002] d..1.b2    86.581928: kvm_exit: {KERNEL_EXIT}",
    "ftrace without flags": f"       CPU 3/KVM-4145  [002]    86.581928: kvm_exit: {KERNEL_EXIT}",
    "dump": f"   CPU 3/KVM-4145    2d..1. 86581928us : kvm_exit: {KERNEL_EXIT}",
    "dump in the log": f"[   99.123456]    CPU 3/KVM-4145    2d..1. 86581928us+: kvm_exit: {KERNEL_EXIT}",
    "report": f"       CPU 3/KVM-4145  [002]    86.581928: kvm_exit:             {EXIT} info d82 7",
    "report with vCPU": f"       CPU 3/KVM-4145  [002]    86.581928: kvm_exit:   vcpu 3 {EXIT} info d82 7",
    "report -t": f"       CPU 3/KVM-4145  [002]    86.581928000: kvm_exit:             {EXIT} info d82 7",
    "report -l": f"CPU 3/KV-4145    2d..1.    86.581928: kvm_exit:             {EXIT} info d82 7",
    "report -N": f"       CPU 3/KVM-4145  [002]    86.581928: kvm_exit:             {KERNEL_EXIT}",
    "report -R": f"       CPU 3/KVM-4145  [002]    86.581928: kvm_exit:             {RAW_EXIT}",
    "report --ts-diff": f"       CPU 3/KVM-4145  [002]    86.581928: (+18)    kvm_exit:   {EXIT} info d82 7",
    "report of two files": f"  trace.dat:    CPU 3/KVM-4145  [002] 86.581928: kvm_exit:  {EXIT} info d82 7",
    "report without parser": f" CPU 3/KVM-4145 [002] d..1. 86.581928: kvm_exit: [FAILED TO PARSE] {RAW_EXIT}",
    "script": f"       CPU 3/KVM  4145 [002]    86.581928:          kvm:kvm_exit: {KERNEL_EXIT}",
    "script with pid": f"       CPU 3/KVM  4140/4145 [002]    86.581928000:   kvm:kvm_exit: {KERNEL_EXIT}",
    "script without cpu": f"       CPU 3/KVM  4145    86.581928:          kvm:kvm_exit: {KERNEL_EXIT}",
    "script without comm": f"  4145 [002]    86.581928:          kvm:kvm_exit: {KERNEL_EXIT}",
    "script without thread": f" [002]    86.581928:          kvm:kvm_exit: {KERNEL_EXIT}",
    "script with comm only": f"       CPU 3/KVM     86.581928:          kvm:kvm_exit: {KERNEL_EXIT}",
    "script with time only": f"    86.581928:          kvm:kvm_exit: {KERNEL_EXIT}",
    "script with period": f"       CPU 3/KVM  4145 [002]    86.581928:     1    kvm:kvm_exit: {KERNEL_EXIT}",
    "perf trace": f" 86581.928 CPU 3/KVM/4145 kvm:kvm_exit({ARGUMENTS})",
    "perf trace with durations": f" 86581.928 (         ): CPU 3/KVM/4145 kvm:kvm_exit({ARGUMENTS})",
    "perf trace of 4.18": f" 86581.928 kvm:kvm_exit:{KERNEL_EXIT})",
    "quoted": f"> >       CPU 3/KVM-4145    [002] d..1.    86.581928: kvm_exit: {KERNEL_EXIT}",
    "quoted-printable": f"   CPU 3/KVM-4145  [002]    86.581928: kvm_exit: {RAW_EXIT}".replace("=", "=3D"),
}
"""The same exit, once a way to write it; what a way leaves out, the record lacks."""


def records(data: bytes, *, fast: bool = True, **options: Any) -> Records:
    """Read text at once."""
    reader = Reader("text", fast=fast, **options)
    found, rest = reader.take(data, True)
    assert rest == b""
    return found


def same(one: Records, other: Records) -> bool:
    """Say whether two readings agree, reasons by their names."""
    exits = one.event == CODE["kvm_exit"]
    for name in COLUMNS:
        first, second = getattr(one, name), getattr(other, name)
        if first.shape != second.shape:
            return False
        if name == "b":
            if [one.reasons[code] for code in first[exits]] != [
                other.reasons[code] for code in second[exits]
            ]:
                return False
            first, second = first[~exits], second[~exits]
        if not np.array_equal(first, second):
            return False
    notes = ("tasks", "marks", "lines", "skipped", "guessed", "lost", "lost_unknown", "origin_s")
    return all(getattr(one, name) == getattr(other, name) for name in notes)


def accounted(found: Records) -> bool:
    """Say whether each line is an event or was skipped for a reason."""
    return found.lines == len(found) + found.skipped.total()
