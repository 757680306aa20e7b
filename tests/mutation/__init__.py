"""Faults planted in the engine, one at a time: the oracle must catch every one.

`python -m tests.mutation` from the root of the checkout plants each fault of `faults.py` in a copy of the
package, runs the scenarios of `cases.py` on the copy, uncompiled, beside the oracle, and says which scenario
caught it. A fault that survives means that the oracle's scenarios do not look there.
"""
