"""What a bug report or a published figure should name: versions of the project and what it stands on."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["show_versions", "versions"]

PACKAGES = ("kvmpfn", "numpy", "numba", "llvmlite", "pandas", "pyarrow", "pydantic", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of the interpreter, the system and the packages that results pass through."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def show_versions() -> None:
    """Print `versions`, one a line."""
    for name, version in versions().items():
        print(f"{name:12s}{version}")
