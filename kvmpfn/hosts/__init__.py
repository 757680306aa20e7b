"""Hosts: topology and cost tables, as data files whose every figure names its source.

A host's own file has what was read for its hardware: what cache lines and atomics cost. What the kernel's
work costs is the same for all (``_kernel.toml``), and is that of x86 at about 3 GHz. On ``neoverse_n1``
(arm64) only the former holds, and break-before-make is not modelled: use it for the line model and for
shapes, not for times.
"""

from kvmpfn.hosts.host import COSTS, Cost, Host, Placement

__all__ = ["COSTS", "Cost", "Host", "Placement"]
