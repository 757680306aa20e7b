"""Where the time of a run's slowest faults went, and who held the line or the lock that they waited for."""

from kvmpfn.explain.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
