"""Every interleaving: each row decided, each counterexample replayed, and an explorer that can fail."""

from __future__ import annotations

import json

import pytest

import kvmpfn as kp
from kvmpfn.cli import main
from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.plots import interleaving_frame, plot_interleaving
from kvmpfn.protocol import (
    CALLERS,
    MECHANISMS,
    MEMORY_MODELS,
    MUTANTS,
    PROPERTIES,
    Verdict,
    check_protocol,
    replay,
)
from kvmpfn.protocol.rows import ROWS

# What each row must come to under sc, tso and weak: SAFE, or the property that breaks first.
# kernel-facts 8 and the model's list of expectations; docs/protocol.md has the two that differ from it.
SAFE, STALE, FREED = ["SAFE"] * 3, ["stale_use"] * 3, ["freed_use"] * 3
EXPECTED = {
    "preset v6.1": SAFE,
    "preset v6.8": SAFE,
    "preset v7_series": FREED,
    "preset v11_series": FREED,
    "preset v6.13": SAFE,
    "preset v6.16": SAFE,
    "preset no_ref": SAFE,
    "v7_series, not marked on RETRY": FREED,
    "v11_series, not marked on RETRY": SAFE,
    "v6.13, marked after unlock": FREED,
    "no guard and no reference": STALE,
    "no guard, reference over the install": STALE,
    "guard but no check": STALE,
    "guard but no check, no reference": STALE,
    "check before the lock only": STALE,
    "range alone": FREED,
    "sequence alone": STALE,
    "snapshot after GUP": FREED,
    "snapshot's smp_rmb removed": SAFE,
    "snapshot's smp_rmb removed, no reference": ["SAFE", "SAFE", "freed_use"],
    "get that orders nothing": ["SAFE", "SAFE", "freed_use"],
    "end's smp_wmb removed": SAFE,
    "end's stores swapped": SAFE,
    "pre-checks removed": SAFE,
    "pre-checks torn": SAFE,
    "mmu_lock for write": SAFE,
    "zap without a flush": STALE,
    "host unmaps before start": STALE,
    "host frees after end": SAFE,
    "host frees after end, no reference": SAFE,
    "zero-count get and put": FREED,
    "RETRY keeps its reference": ["refcount"] * 3,
    "reference put twice": FREED,
    "end leaves in_progress": ["completion"] * 3,
    "end leaves mmu_lock": ["deadlock"] * 3,
    "APIC page": SAFE,
    "APIC page, no reference": SAFE,
    "APIC page, no check": STALE,
    "APIC page, check before the lock only": SAFE,
    "APIC page, range alone": FREED,
    "APIC page, not asked to reload": STALE,
    "pfn cache": SAFE,
    "pfn cache, no reference": SAFE,
    "pfn cache, no check": STALE,
    "pfn cache, seq + 1 after the active count drops": FREED,
    "pfn cache, no active count": STALE,
    "pfn cache, active count alone": FREED,
    "pfn cache, in_progress for the active count": STALE,
    "pfn cache, check's smp_rmb removed": ["SAFE", "SAFE", "freed_use"],
    "kvm_vcpu_map": SAFE,
    "kvm_vcpu_map, no reference": FREED,
    "kvm_vcpu_map, reference put at once": FREED,
    "kvm_vcpu_map, zero-count get and put": FREED,
    "lock-free observer": SAFE,
    "lock-free observer, check's smp_rmb removed": ["SAFE", "SAFE", "observer"],
    "lock-free observer, end's smp_wmb removed": ["SAFE", "SAFE", "observer"],
    "lock-free observer, end's stores swapped": ["observer"] * 3,
    "lock-free observer that reads the range": ["SAFE", "SAFE", "observer"],
}
NEEDS_TWO = {"get that orders nothing"}  # the frame must be somebody else's before the late get

# Proved for two vCPUs too, not for one alone: the presets, what is harmless, and what other callers do.
# (v6.16 needs no proof of its own, see below.)
PROVED_FOR_TWO = [
    row
    for row in ROWS
    if row.name != "preset v6.16" and (row.caller != "fault" or EXPECTED[row.name] == SAFE)
]


def decide(row, memory_model: str, vcpus: int = 1, **more) -> Verdict:
    return check_protocol(
        row.fault_path, vcpus=vcpus, memory_model=memory_model, caller=row.caller, mutate=row.mutate, **more
    )


def outcome(verdict: Verdict) -> str:
    return "SAFE" if verdict.safe else str(verdict.violated)


def test_every_row_has_its_expectation():
    assert [row.name for row in ROWS] == list(EXPECTED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_decided(row):
    for memory_model, expected in zip(MEMORY_MODELS, EXPECTED[row.name], strict=True):
        verdict = decide(row, memory_model, 2 if row.name in NEEDS_TWO else 1)
        assert outcome(verdict) == expected, verdict
        if verdict.safe:
            assert verdict.counterexample is None and verdict.broken == ()
        else:
            assert replay(verdict) == verdict.broken


@pytest.mark.parametrize("row", PROVED_FOR_TWO, ids=lambda row: row.name)
def test_rows_are_decided_for_two_vcpus(row):
    for memory_model, expected in zip(MEMORY_MODELS, EXPECTED[row.name], strict=True):
        assert outcome(decide(row, memory_model, 2)) == expected


def test_presets_that_agree_in_what_matters_need_one_proof():
    assert all(getattr(PRESETS["v6.16"], name) == getattr(PRESETS["v6.13"], name) for name in MECHANISMS)


@pytest.mark.parametrize("preset", ["v6.1", "v6.13", "no_ref"])
def test_overlapping_invalidations(preset):
    assert check_protocol(preset, vcpus=1, invalidations=2).safe
    assert check_protocol(preset, vcpus=1, pages=2, invalidations=2).safe
    assert check_protocol("no_ref", vcpus=1, invalidations=2, memory_model="weak").safe


@pytest.mark.slow
def test_three_invalidations_three_vcpus_two_pages():
    assert check_protocol("no_ref", vcpus=1, invalidations=3).safe
    assert check_protocol("no_ref", vcpus=1, pages=2, invalidations=3).safe
    assert check_protocol("no_ref", vcpus=2, pages=2).safe


def test_pages_without_a_count():
    for preset in ("v6.1", "v6.8", "v6.13", "v7_series", "v11_series", "no_ref"):
        verdict = check_protocol(preset, vcpus=1, refcounted=False)
        assert verdict.safe, verdict
    # The series maps what v6.1 refuses, so that there is more to happen.
    refused, mapped = (check_protocol(p, vcpus=1, refcounted=False).states for p in ("v6.1", "v6.13"))
    assert refused < mapped


def test_every_mutant_is_in_a_row():
    assert {row.mutate for row in ROWS if row.mutate} == set(MUTANTS)
    assert {row.caller for row in ROWS} == set(CALLERS)


def test_the_page_names_every_mutant_mechanism_and_property(repo_root):
    page = (repo_root / "docs" / "protocol.md").read_text()
    assert [name for name in (*MUTANTS, *MECHANISMS, *PROPERTIES, *CALLERS) if f"`{name}`" not in page] == [
        "fault"
    ]


def test_who_forgets_the_check():
    """The shortest way to harm: GUP before the start, install after it, host unmaps."""
    verdict = check_protocol(FaultPath("no_ref", seq_checked=False))
    assert verdict.broken == ("stale_use",)
    texts = [step.text for step in verdict.counterexample.steps]
    assert len(verdict.counterexample) == 15
    gup = texts.index("GUP-fast: read the host PTE again")
    start = texts.index("start: in_progress + 1")
    install = texts.index("cmpxchg the leaf SPTE")
    assert gup < start < install < texts.index("clear the host PTE of page 0")
    assert not any("mmu_invalidate_seq again" in text for text in texts)


def test_v7s_mark_is_late_with_and_without_a_retry():
    late = check_protocol("v7_series", vcpus=1)
    texts = [step.text for step in late.counterexample.steps if not step.host]
    assert texts[-2:] == ["unlock mmu_lock", "mark accessed"] and "put the page" in texts
    assert not any("cmpxchg" in text for text in texts)  # a RETRY marks too
    fixed = check_protocol(FaultPath("v7_series", accessed_on_retry=False), vcpus=1)
    texts = [step.text for step in fixed.counterexample.steps if not step.host]
    assert texts[-2:] == ["unlock mmu_lock", "mark accessed"]
    assert any("cmpxchg" in text for text in texts)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_reduced_graph_has_the_same_verdict(row):
    for memory_model in ("sc", "weak"):
        reduced, whole = (decide(row, memory_model, reduced=flag) for flag in (True, False))
        assert outcome(reduced) == outcome(whole)
        if not whole.safe:
            assert reduced.to_dict() == whole.to_dict()  # the shortest in both
        else:
            assert reduced.states <= whole.states


def test_counterexamples_are_the_shortest():
    """No shorter path breaks anything: breadth first, checked against a depth-bounded search."""
    verdict = check_protocol(FaultPath("no_ref", guarded=False), vcpus=1)
    bound = len(verdict.counterexample) - 1
    search = search_of(verdict)
    best = {search.initial: 0}
    stack = [(search.initial, 0)]
    while stack:
        state, depth = stack.pop()
        if depth == bound:
            continue
        for at in range(len(search.threads)):
            for move in search.moves_of(at, state):
                assert search.broken(move) is None
                after = search.after(at, state, move)
                if best.get(after, bound + 1) > depth + 1:
                    best[after] = depth + 1
                    stack.append((after, depth + 1))
    assert len(best) > 100


def search_of(verdict: Verdict):
    from kvmpfn.protocol.explore import Search

    return Search(verdict.setting, verdict.properties, reduced=False)


def test_replay_refuses_what_did_not_happen():
    verdict = check_protocol("v7_series", vcpus=1)
    example = verdict.counterexample
    swapped = example.moves[:4] + example.moves[5:6] + example.moves[4:5] + example.moves[6:]
    object.__setattr__(example, "moves", swapped)
    with pytest.raises(ValueError, match="cannot happen"):
        replay(verdict)
    with pytest.raises(ValueError, match="no counterexample"):
        replay(check_protocol("no_ref", vcpus=1))


def test_same_question_same_answer():
    first, second = (check_protocol("v11_series", memory_model="weak") for _ in range(2))
    assert repr(first) == repr(second) and first.to_dict() == second.to_dict()
    assert check_protocol("v6.1").states == check_protocol("v6.1").states


def test_timeline_has_two_columns():
    verdict = check_protocol(FaultPath("no_ref", seq_checked=False))
    lines = verdict.counterexample.timeline().splitlines()
    column = lines[0].index("host")
    for step, line in zip(
        verdict.counterexample.steps, (x for x in lines if x[:4].strip().isdigit()), strict=True
    ):
        assert (line[6:column].strip() == "") == step.host
        assert step.text[:20] in line
    assert lines[-1].strip() == f"=> {verdict.counterexample.text}"
    assert str(verdict.counterexample) in repr(verdict)


def test_html_is_escaped_and_static():
    html = check_protocol(FaultPath("v6.1", seq_checked=False, name="<b>mine</b>"))._repr_html_()
    assert "<b>mine" not in html and "&lt;b&gt;mine" in html and "-&gt;" in html
    assert "script" not in html and html.count("<tr>") == 19
    assert "<table>" not in check_protocol("no_ref", vcpus=1)._repr_html_()


def test_face():
    assert kp.check_protocol is check_protocol
    verdict = kp.check_protocol("no_ref", vcpus=1)
    assert verdict.safe and verdict.states > 100 and verdict.counterexample is None


@pytest.mark.parametrize(
    ("arguments", "where", "nearest"),
    [
        ({"fault_path": "v6.2"}, "FaultPath", "v6.1"),
        ({"vcpus": 4}, "vcpus", "3"),
        ({"vcpus": "2"}, "vcpus", "1"),
        ({"pages": 0}, "pages", "1"),
        ({"invalidations": 9}, "invalidations", "3"),
        ({"memory_model": "arm"}, "memory_model", "weak"),
        ({"caller": "apic"}, "caller", "apic_access_page"),
        ({"mutate": "range_only"}, "mutate", "range_alone"),
        ({"mutate": "early_unpin"}, "mutate", "vcpu_map"),
        ({"mutate": "zero_count_get", "refcounted": True}, "refcounted", "False"),
        ({"properties": ["stale"]}, "properties", "stale_use"),
        ({"limit": 100}, "limit", "smaller"),
    ],
)
def test_bad_input_is_one_line(arguments, where, nearest):
    with pytest.raises(kp.InputError) as error:
        check_protocol(**{"fault_path": "v6.1", "vcpus": 1} | arguments)
    assert error.value.where == where and nearest in str(error.value) and "\n" not in str(error.value)


def test_properties_stand_apart():
    """A mapping that kvm_vcpu_map pins may go stale, but its frame is not freed."""
    assert check_protocol("v6.1", caller="vcpu_map").safe
    stale = check_protocol("v6.1", caller="vcpu_map", properties=["stale_use"])
    assert stale.violated == "stale_use" and stale.properties == ("stale_use",)
    # What forgets the check goes stale first; asked for the other property, it uses a freed frame later.
    path = FaultPath("no_ref", seq_checked=False)
    first, later = check_protocol(path), check_protocol(path, properties=["freed_use"])
    assert later.violated == "freed_use" and len(later.counterexample) > len(first.counterexample)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["v6.1", "--vcpus", "1"], 0),
        (["v6.1", "--vcpus", "1", "--set", "seq_checked=false"], 3),
        (["v6.1", "--vcpus", "1", "--mutate", "nothing"], 2),
        (["v6.1", "--vcpus", "7"], 2),
    ],
)
def test_command_line(arguments, code, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["check", *arguments])
    assert exit.value.code == code
    out, err = capsys.readouterr()
    assert ("SAFE" in out) == (code != 2) and (code == 2) == (err.count("\n") == 1)


def test_command_line_as_json(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["check", "no_ref", "v7_series", "--vcpus", "1", "--json"])
    assert exit.value.code == 3
    safe, unsafe = json.loads(capsys.readouterr().out)
    assert safe["safe"] and safe["counterexample"] is None and safe["fault_path"] == "no_ref"
    assert unsafe["violated"] == "freed_use" and len(unsafe["counterexample"]["steps"]) == 18


def test_drawn_counterexample_holds_the_steps():
    import matplotlib.pyplot as plt

    verdict = check_protocol("v6.1", mutate="end_forgets_decrement", vcpus=1)
    frame = interleaving_frame(verdict)
    assert list(frame["step"]) == list(range(1, len(verdict.counterexample) + 2))
    fig = plot_interleaving(verdict)
    texts = " ".join(text.get_text().replace("\n", " ") for text in fig.axes[0].texts)
    assert all(text in texts for text in frame["text"]) and "again and again" in texts
    plt.close(fig)
    with pytest.raises(ValueError, match="safe"):
        interleaving_frame(check_protocol("no_ref", vcpus=1))
