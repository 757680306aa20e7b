"""What is published says nothing of the machine it was made on, and all its parts agree."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kvmpfn

# Absolute paths that exist on one machine only. The lookbehind lets relative paths and addresses pass.
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|root|home|Users|opt|mnt)/[\w.@-]+")
# Where packages come from is the installing machine's business.
INDEX = re.compile(
    r"(?:pypi|pythonhosted|npmjs|anaconda)\.(?:org|com)\b"
    r"|(?<!emit-)\b(?:extra-)?index[-]url\b"
    r"|\bfind[-]links\b"
    r"|https?://[^\s'\"]*/simple\b"
)


def tracked(root: Path, *patterns: str) -> list[Path]:
    """Files that git tracks and that are there, or a skip where there is no checkout."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=root, capture_output=True, check=True, text=True
    ).stdout
    return [path for name in listing.split("\0") if name and (path := root / name).is_file()]


def findings(root: Path, pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tracked(root):
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {match.group()}")
    return found


def test_no_tracked_file_names_a_machine_path(repo_root: Path) -> None:
    assert findings(repo_root, MACHINE_PATH) == []


def test_no_tracked_file_names_a_package_index(repo_root: Path) -> None:
    assert findings(repo_root, INDEX) == []


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (MACHINE_PATH, "open('" + "/home" + "/someone/x')", True),
        (MACHINE_PATH, "data/work/x and https://example.org/root/x and /proc/self/maps", False),
        (INDEX, "pip install --index" + "-url x", True),
        (INDEX, "uv pip compile --no-emit-index-url", False),
    ],
)
def test_the_patterns_find_what_they_should(pattern: re.Pattern[str], text: str, matches: bool) -> None:
    assert bool(pattern.search(text)) is matches


def test_every_locked_package_has_hashes_and_no_address(repo_root: Path) -> None:
    text = (repo_root / "requirements.lock").read_text()
    assert "://" not in text
    for requirement in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9._-]+==\S+", requirement), requirement.splitlines()[0]
        assert "--hash=sha256:" in requirement, requirement.splitlines()[0]


def test_the_lock_holds_every_direct_dependency_and_the_build_back_end(repo_root: Path) -> None:
    pyproject = tomllib.loads((repo_root / "pyproject.toml").read_text())
    project = pyproject["project"]
    wanted = [*project["dependencies"], *pyproject["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in wanted}
    locked = set(
        re.findall(r"^([a-z0-9._-]+)==", (repo_root / "requirements.lock").read_text(), re.MULTILINE)
    )
    assert names - locked == set()


def test_notebooks_carry_no_results(repo_root: Path) -> None:
    for path in tracked(repo_root, "*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        name = str(path.relative_to(repo_root))
        assert "widgets" not in notebook["metadata"], f"{name}: widget state"
        for number, cell in enumerate(notebook["cells"]):
            assert not cell.get("outputs"), f"{name}: outputs in cell {number}"
            assert cell.get("execution_count") is None, f"{name}: an execution count in cell {number}"
            assert "execution" not in cell["metadata"], f"{name}: execution times in cell {number}"


def test_the_version_is_the_same_everywhere(repo_root: Path) -> None:
    version = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["version"]
    assert kvmpfn.__version__ == version
    assert importlib.metadata.version("kvmpfn") == version
    assert f"\nversion: {version}\n" in (repo_root / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (repo_root / "CHANGELOG.md").read_text()


def test_the_wheel_holds_every_file_of_the_package(repo_root: Path, tmp_path: Path) -> None:
    package = {path.relative_to(repo_root).as_posix() for path in tracked(repo_root, "kvmpfn")}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=repo_root,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert package - set(archive.namelist()) == set()
