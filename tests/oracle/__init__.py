"""The model of docs/model.md a second time: plain Python on SimPy, slow, and written to be read.

It shares no line with `kvmpfn.core`. Every vCPU and every storm client is a process; the words they contend
for are objects; page tables and the host's entries are dictionaries. A fault reads from top to bottom in
`fault.py` as the kernel's does, and each `yield from cpu.step("name")` in it is one event of the model.

`oracle.simulate(scenario)` returns what it found (`oracle.found.Found`), of which the compiled engine must
find every number: step for step, counter for counter, picosecond for picosecond.
"""

from oracle.found import Found
from oracle.world import simulate

__all__ = ["Found", "simulate"]
