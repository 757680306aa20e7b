"""What every test shares: hypothesis without chance, plots without a display, recordings if any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A test must not depend on a display, nor on who imports pyplot first.
os.environ["MPLBACKEND"] = "Agg"

# The same examples on every machine and every run; no time limit, since the first call of a compiled
# function includes its compilation.
settings.register_profile("kvmpfn", derandomize=True, database=None, deadline=None)
settings.load_profile("kvmpfn")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def recordings(repo_root: Path) -> Path:
    """The folder of full-length KVM recordings beside the checkout; the test is skipped without it.

    KVMPFN_RECORDINGS names another folder.
    """
    folder = Path(os.environ.get("KVMPFN_RECORDINGS") or repo_root.parent / "shared" / "traces")
    if not folder.is_dir():
        pytest.skip("no folder of recordings beside the checkout, and KVMPFN_RECORDINGS is not set")
    return folder
