"""What an error code says of the access, which depends on the machine, which the event does not name.

* Intel EPT: the exit qualification: bit 0 read, 1 write, 2 fetch (Intel SDM 3, table 28-7).
* AMD NPT, and shadow paging: an x86 page-fault code: bit 1 write, 4 fetch (AMD APM 2, 8.4.2 and 15.25.6).
* arm64: ESR_EL2: an instruction abort executes; a data abort's bit 6 (WnR) writes (Arm ARM, D24.2).

The exit of the same thread before the fault names the machine. Without one the recording's other exits do, or
bits that only one of them has: above bit 31 AMD's, bit 7 (the linear address is valid) Intel's. That is a
guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.int64]

__all__ = ["KINDS", "MACHINES", "access_kinds", "machines"]

MACHINES = ("unknown", "ept", "npt", "shadow", "arm64")
UNKNOWN, EPT, NPT, SHADOW, ARM64 = range(5)
KINDS = ("unknown", "read", "write", "exec")
READ, WRITE, EXEC = 1, 2, 3

REASONS = {
    "EPT_VIOLATION": EPT,
    "EPT_MISCONFIG": EPT,
    "npf": NPT,
    "NPF": NPT,
    "EXIT_NPF": NPT,
    "EXCEPTION_NMI": SHADOW,
    "EXIT_EXCP_BASE": SHADOW,
    "PF excp": SHADOW,
    "EXIT_EXCP_PF": SHADOW,
}
"""Exit reasons as the kernel and trace-cmd's plugin write them, by the machine whose fault they are."""

AMD_BITS = 32
EPT_GVA_VALID = 7
ARM_CLASS = 26
ARM_IABT_LOW = 0x20
ARM_WRITE = 6


def machines(
    reason: Words, error_code: Words, arm64: NDArray[np.bool_], reasons: Sequence[str]
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Return the machine of each fault, as places in `MACHINES`, and whether it is a guess.

    Parameters
    ----------
    reason : ndarray of int64
        The exit before the fault, as a place in `reasons`; -1 if none was recorded.
    error_code : ndarray of int64
        The code as the event has it.
    arm64 : ndarray of bool
        Whether the event is arm64's.
    reasons : sequence of str
        Names of exit reasons.
    """
    of_reason = np.array([*(REASONS.get(name, UNKNOWN) for name in reasons), UNKNOWN], dtype=np.int8)
    in_range = (reason >= 0) & (reason < len(reasons))
    found = of_reason[np.where(in_range, reason, len(reasons))]
    found[arm64] = ARM64
    told = set(of_reason.tolist())
    if told & {EPT, NPT}:
        guess = EPT if EPT in told else NPT
    elif bool(((error_code >> AMD_BITS) != 0)[~arm64].any()):
        guess = NPT
    else:
        guess = EPT if bool((error_code[~arm64] >> EPT_GVA_VALID & 1).any()) else UNKNOWN
    guessed = (found == UNKNOWN) & (guess != UNKNOWN)
    return np.where(guessed, guess, found).astype(np.int8), guessed


def access_kinds(machine: NDArray[np.int8], error_code: Words) -> NDArray[np.int8]:
    """Return what each access did, as places in `KINDS`.

    A write has the same bit on all x86 machines; what else an unknown machine's code says is unknown.
    """
    write = (error_code >> 1 & 1).astype(bool)
    fetch = np.where(machine == EPT, error_code >> 2 & 1, error_code >> 4 & 1).astype(bool)
    kind = np.where(fetch, EXEC, np.where(write, WRITE, READ))
    unknown = machine == UNKNOWN
    kind[unknown] = np.where(write[unknown], WRITE, 0)
    arm = machine == ARM64
    code = error_code[arm]
    executes = (code >> ARM_CLASS & 0x3F) == ARM_IABT_LOW
    kind[arm] = np.where(executes, EXEC, np.where(code >> ARM_WRITE & 1, WRITE, READ))
    return kind.astype(np.int8)
