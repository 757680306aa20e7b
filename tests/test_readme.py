"""The documents: examples run as written, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvmpfn.scenario import Scenario
from kvmpfn.workloads import KINDS

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DOCUMENTS = (
    "README.md",
    "docs/model.md",
    "docs/protocol.md",
    "docs/fault-paths.md",
    "docs/workloads.md",
    "docs/recording.md",
    "docs/exporting.md",
    "docs/speed.md",
)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/fault-paths.md", "docs/workloads.md"])
def test_example_runs(repo_root: Path, document: str) -> None:
    """Every python example runs in a process of its own, and says something."""
    examples = blocks((repo_root / document).read_text(encoding="utf-8"), "python")
    assert examples
    for example in examples:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_scenario_files_load(repo_root: Path, document: str) -> None:
    """Every scenario file that a document shows is one."""
    for example in blocks((repo_root / document).read_text(encoding="utf-8"), "toml"):
        Scenario.from_toml(example)


def test_every_workload_is_listed(repo_root: Path) -> None:
    """The table of workloads has all kinds and all their knobs, and no others."""
    text = (repo_root / "docs/workloads.md").read_text(encoding="utf-8")
    rows = [
        row.split("|")[1:4:2] for row in re.findall(r"^\|.*\|$", text.partition("\nAll but")[0], re.MULTILINE)
    ]
    found = {
        re.findall(r"`(\w+)`", kinds)[0]: set(re.findall(r"`(\w+)`", knobs)) for kinds, knobs in rows[2:]
    }
    common = {"kind", "think", "think_dist", "writes", "execs"}
    assert found == {kind: set(cls.model_fields) - common for kind, cls in KINDS.items()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_exist(repo_root: Path, document: str) -> None:
    """Every relative link of a document names a file of the checkout."""
    path = repo_root / document
    links = LINK.findall(path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_commands_exist(repo_root: Path) -> None:
    """Every make target that the README names is in the Makefile."""
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    makefile = (repo_root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks(text, "sh"))))
    assert targets == {"figures", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_explanation_is_the_one_printed(repo_root: Path) -> None:
    """What the README shows of its example is what the example prints."""
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    (shown,) = blocks(text, "text")
    run = subprocess.run(
        [sys.executable, "-c", blocks(text, "python")[0]], capture_output=True, text=True, check=True
    )
    assert run.stdout.endswith(shown)
