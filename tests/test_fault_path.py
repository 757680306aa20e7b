import pytest

from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.units import InputError


def mechanisms(path):
    return {key: value for key, value in dict(path).items() if key not in ("preset", "name")}


def differences(one, other):
    left, right = mechanisms(PRESETS[one]), mechanisms(PRESETS[other])
    return {key: right[key] for key in left if left[key] != right[key]}


def test_presets_come_in_order():
    assert list(PRESETS) == ["v6.1", "v6.8", "v7_series", "v11_series", "v6.13", "v6.16", "no_ref"]
    assert all(path.name == path.preset == name for name, path in PRESETS.items())


@pytest.mark.parametrize(
    ("one", "other", "changes"),
    [
        ("v6.1", "v7_series", {"reference": "early_put", "nonrefcounted": "map", "spte_bit": "4k"}),
        ("v7_series", "v11_series", {"spte_bit": "all", "accessed_marking": "before_unlock"}),
        ("v6.13", "v6.16", {"early_spurious": True, "aging_lock": "none"}),
        (
            "v6.1",
            "no_ref",
            {
                "reference": "none",
                "nonrefcounted": "map",
                "dirty_marking": "none",
                "accessed_marking": "none",
                "accessed_on_retry": False,
                "zap_marks_page": False,
                "pfnmap_reference": False,
            },
        ),
    ],
)
def test_what_presets_differ_in(one, other, changes):
    assert differences(one, other) == changes


def test_no_kernel_skips_the_reference():
    assert [name for name, path in PRESETS.items() if path.reference == "none"] == ["no_ref"]


def test_only_kernels_from_v6_8_check_before_the_lock():
    assert [name for name, path in PRESETS.items() if path.prechecks] == ["v6.8", "v6.13", "v6.16"]


def test_changes_are_in_the_name():
    path = FaultPath("v6.1", reference="early_put", prechecks=False)
    assert path.name == "v6.1 reference=early_put"
    assert path.changes == {"reference": "early_put"}
    assert path.replace(spte_bit="all").name == "v6.1 reference=early_put spte_bit=all"
    assert path.replace(reference="held") == PRESETS["v6.1"]


def test_a_given_name_stays():
    path = FaultPath("v6.1", name="mine", reference="early_put")
    assert path.replace(spte_bit="all").name == "mine"
    assert FaultPath(**path.plain()) == path


def test_plain_says_only_what_differs():
    assert FaultPath("v6.13").plain() == "v6.13"
    assert FaultPath("v6.13", guarded=False).plain() == {"preset": "v6.13", "guarded": False}


def test_it_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        PRESETS["v6.1"].reference = "none"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaultPath("v6.14"), "FaultPath: no preset 'v6.14'; nearest is 'v6.1"),
        (
            lambda: FaultPath("v6.1", refrence="held"),
            "FaultPath: unknown key 'refrence'; nearest is 'reference'",
        ),
        (lambda: FaultPath("v6.1", reference="hold"), "reference: 'hold' is not one of held, early_put, "),
        (lambda: FaultPath("v6.1", guarded="yes"), "guarded: 'yes' is not a truth value; nearest is True"),
    ],
)
def test_mistakes_name_the_nearest(make, message):
    with pytest.raises(InputError) as raised:
        make()
    assert str(raised.value).startswith(message)
