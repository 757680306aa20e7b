"""Hosts: topology and cost tables, as data files whose every figure names its source."""

from kvmpfn.hosts.host import COSTS, Cost, Host, Placement

__all__ = ["COSTS", "Cost", "Host", "Placement"]
