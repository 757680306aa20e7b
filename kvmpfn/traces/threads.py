"""Which threads are vCPUs of which VM: a recording does not say who belongs together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvmpfn.traces.events.records import UNNAMED

__all__ = ["vm_of"]


@dataclass
class _Vm:
    family: str
    pid: int
    vcpu: int


def vm_of(threads: Sequence[tuple[int, int]], tasks: Mapping[int, str]) -> dict[tuple[int, int], int]:
    """Divide vCPU threads among VMs.

    A VM's threads are made in the order of its vCPUs, and have the same name but for numbers. So, by thread
    id, each thread belongs to the VM made last whose name fits and whose vCPUs so far have lower numbers, or
    is the first of another. This is a guess: nothing in the text of a recording tells a thread's process.

    Parameters
    ----------
    threads : sequence of (int, int)
        Thread id and vCPU.
    tasks : mapping of int to str
        Names of the threads.

    Returns
    -------
    dict
        A VM's number by thread id and vCPU, VMs in the order of their first threads.
    """
    vms: list[_Vm] = []
    found: dict[tuple[int, int], int] = {}
    for pid, vcpu in sorted(threads):
        name = tasks.get(pid, UNNAMED)
        family = "" if name == UNNAMED else re.sub(r"\d+", "#", name)
        fits = [
            number
            for number, vm in enumerate(vms)
            if vm.vcpu < vcpu and (vm.family == family or not (vm.family and family))
        ]
        chosen = max(fits, key=lambda number: vms[number].pid, default=len(vms))
        if chosen == len(vms):
            vms.append(_Vm(family, pid, vcpu))
        one = vms[chosen]
        one.family, one.pid, one.vcpu = one.family or family, pid, vcpu
        found[pid, vcpu] = chosen
    return found
