"""How an attempt at a fault ends (docs/model.md 8)."""

RETRY, FIXED, SPURIOUS, EMULATE, ERROR = "retry", "fixed", "spurious", "emulate", "error"
