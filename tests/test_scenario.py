import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpfn import storms, workloads
from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.hosts import Host
from kvmpfn.scenario import BACKINGS, Region, Scenario, parse_until
from kvmpfn.units import InputError

BASE = Scenario(
    host="icelake_sp_2s",
    vms=1,
    vcpus=64,
    memory=[Region("16GiB", backing="anon")],
    fault_path="v6.1",
    workload=workloads.demand_paging(order="random"),
    storms=[storms.poisson(rate="50k/s", span="256KiB", hold="4us")],
    seed=1,
)

shares = {"writes": st.floats(0, 0.5), "execs": st.floats(0, 0.5), "accesses": st.integers(1, 1 << 40)}
phases = st.one_of(
    st.builds(workloads.strided, stride=st.sampled_from(["4KiB", "2MiB"]), **shares),
    st.builds(
        workloads.zipf, exponent=st.floats(0, 8), order=st.sampled_from(["random", "sequential"]), **shares
    ),
    st.builds(
        workloads.hot_cold, hot_memory=st.floats(0, 1), drift=st.sampled_from(["0B", "2MiB"]), **shares
    ),
    st.builds(workloads.pointer_chase, footprint=st.sampled_from([None, "64MiB"]), **shares),
    st.builds(
        workloads.demand_paging,
        order=st.sampled_from(["sequential", "random"]),
        share=st.sampled_from(["partitioned", "overlapping"]),
        passes=st.integers(1, 9),
        think=st.sampled_from(["0ns", "1.5us"]),
    ),
    st.builds(workloads.uniform, writes=st.floats(0, 1), accesses=st.integers(1, 1 << 40)),
    st.builds(
        workloads.snapshot_restore, working_set=st.sampled_from(["64MiB", 4096]), writes=st.floats(0, 1)
    ),
)
works = phases | st.builds(
    workloads.phases, st.lists(phases, min_size=1, max_size=3), repeat=st.integers(1, 9)
)
others = {
    "span": st.sampled_from(["4KiB", "1MiB"]),
    "hold": st.sampled_from(["0ns", "4us", "2.5ms"]),
    "action": st.sampled_from(["madvise", "numa_balancing", "migration", "age"]),
    "offset": st.sampled_from([None, "0B", "8KiB"]),
    "limit": st.none() | st.integers(1, 1 << 60),
    "vm": st.sampled_from(["each", 0, 1]),
}
clients = st.one_of(
    st.builds(storms.poisson, rate=st.sampled_from(["50k/s", "0.25/s"]), **others),
    st.builds(storms.periodic, **others),
    st.builds(storms.closed_loop, think=st.sampled_from(["0ns", "3us"]), **others),
    st.builds(storms.bursts, on=st.sampled_from(["1ms", "1ps"]), **others),
)
scenarios = st.builds(
    Scenario,
    host=st.sampled_from(["milan_2s", Host.scaled("icelake_sp_2s", sockets=4).with_cost("exit", "7.25")]),
    vms=st.integers(2, 4),
    vcpus=st.integers(1, 16),
    memory=st.lists(
        st.builds(Region, st.just("2GiB"), backing=st.sampled_from(list(BACKINGS)), mapped=st.booleans()),
        min_size=1,
        max_size=3,
    ),
    fault_path=st.sampled_from([*PRESETS, FaultPath("v6.1", reference="early_put", spte_bit="all")]),
    workload=works,
    storms=st.lists(clients, max_size=3),
    pml=st.sampled_from(["auto", True, False]),
    levels=st.sampled_from([4, 5]),
    until=st.sampled_from([None, 7, "3000000 faults", "10ms"]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(scenarios)
def test_what_is_written_reads_back(scenario):
    # Nothing but the text matters: TOML and JSON both give the same scenario, byte for byte.
    for again in (Scenario.from_toml(scenario.to_toml()), Scenario.from_json(scenario.to_json())):
        assert again == scenario
        assert again.to_json() == scenario.to_json() and again.digest() == scenario.digest()


def test_files(tmp_path):
    (tmp_path / "s.toml").write_text(BASE.to_toml())
    (tmp_path / "s.json").write_text(BASE.to_json())
    assert Scenario.load(tmp_path / "s.toml") == Scenario.load(tmp_path / "s.json") == BASE
    (tmp_path / "bad.toml").write_text("vcpu = 3")
    for name in ("none.toml", "s.yaml", "bad.toml"):
        with pytest.raises(InputError, match=name):
            Scenario.load(tmp_path / name)


def test_the_digest_is_of_every_field():
    assert BASE.digest() == Scenario(**BASE.plain()).digest()
    assert len({BASE.digest(), BASE.replace(seed=2).digest(), BASE.replace(mmu="npt").digest()}) == 3


def test_shorthands():
    assert (
        Scenario(memory="16GiB").memory == Scenario(memory=[{"size": "16GiB"}]).memory == (Region("16GiB"),)
    )
    assert Scenario(fault_path=FaultPath("v6.13")).fault_path == "v6.13"
    assert Scenario(host=Host.load("milan_2s")).host == "milan_2s"
    assert Scenario(workload="demand_paging").workload == workloads.demand_paging()


def test_replace_takes_paths():
    scenario = BASE.replace(vcpus=8, **{"storms.0.rate": "1k/s", "memory.0.size": "1GiB"})
    assert (scenario.vcpus, scenario.storms[0].gap_ps, scenario.pages) == (8, 10**9, 1 << 18)
    assert scenario.with_path("host.costs.exit", 3).machine.cost_ps("exit") == 3000
    assert scenario.with_path("fault_path.reference", "early_put").mechanisms.reference == "early_put"
    assert scenario.with_path("workload.think", "1us").workload.think_ps == 10**6
    assert BASE.vcpus == 64


def test_numbers_behind_what_users_write():
    storm = storms.bursts(rate="1M/s", on="2ms", off="8ms", span="8KiB", offset="4KiB", hold="3us")
    assert (storm.gap_ps, storm.on_ps, storm.off_ps, storm.hold_ps) == (
        10**6,
        2 * 10**9,
        8 * 10**9,
        3 * 10**6,
    )
    assert (storm.span_bytes, storm.span_pages, storm.offset_bytes, storm.offset_pages) == (8192, 2, 4096, 1)
    assert storms.closed_loop(think="2ns").gap_ps == 2000 and storms.poisson().offset_pages is None
    region = Region("2MiB", backing="page_cache")
    assert (region.pages, region.fault_around_pages, region.shared) == (512, 16, True)
    assert workloads.snapshot_restore(working_set="5KiB").working_set_pages == 2
    assert workloads.replay(vcpus=[[[7, 1, 0]], []]).pages == 8


def test_what_is_mapped_is_populated():
    assert Region("4KiB", mapped=True).populated


def test_auto_follows_the_hardware():
    assert [Scenario(mmu=mmu).pml_on for mmu in ("ept", "npt")] == [True, False]
    assert [Scenario(host=host).nx_huge_pages_on for host in ("skylake_sp_2s", "milan_2s")] == [True, False]
    assert Scenario(pml=False).pml_on is False and Scenario(nx_huge_pages=True).nx_huge_pages_on is True


def test_ends():
    assert [parse_until(end) for end in (None, "3000000 faults", 7, "10ms")] == [
        (None, None),
        (3_000_000, None),
        (7, None),
        (None, 10**10),
    ]
    scenario = Scenario(workload="uniform", until="5 faults")
    assert (scenario.until_faults, scenario.until_ps) == (5, None)


def test_actors_get_threads():
    pinned = [storms.poisson(), storms.periodic(cpu=1, vm=1)]
    scenario = BASE.replace(vms=2, vcpus=2, storms=pinned)
    assert [vm for _, vm in scenario.clients] == [0, 1, 1]
    assert scenario.threads() == ([5, 6, 1], [0, 2, 3, 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vcpu": 3}, "Scenario: unknown key 'vcpu'; nearest is 'vcpus'"),
        ({"vcpus": "3"}, "vcpus: '3' is not a whole number"),
        ({"vcpus": 0}, "vcpus: 0 is out of range; nearest is 1"),
        ({"vcpus": True}, "vcpus: True is not a whole number; nearest is 1"),
        ({"vcpus": 128}, "vcpus: 1 x 128 vCPUs and 1 storm clients need 129, icelake_sp_2s has 128 hardware"),
        ({"vms": 3}, "vcpus: 3 x 64 vCPUs and 3 storm clients need 195"),
        ({"vms": 100, "vcpus": 1}, "vms: 100 x 1 vCPUs and 100 storm clients need 200"),
        ({"memory": []}, "memory: no region"),
        ({"memory": "16GB"}, "memory.0.size: size '16GB': unit is one of"),
        ({"memory": 1.5}, "memory.0.size: size 1.5: not a number with a unit"),
        (
            {"memory": [{"size": "3MiB", "backing": "thp"}]},
            "memory.0.size: '3MiB' is not a multiple of 2MiB (thp)",
        ),
        (
            {"memory": [{"size": "1GiB", "backing": "anom"}]},
            "memory.0.backing: 'anom' is not one of anon, ksm",
        ),
        ({"memory": [{"siz": "1GiB"}]}, "memory.0: unknown key 'siz'; nearest is 'size'"),
        ({"storms": [{"arrival": "poison"}]}, "storms.0.arrival: 'poison' is not one of poisson"),
        ({"storms": [{"arrival": "poisson"}]}, "storms.0.rate: is missing; arrival 'poisson' takes rate"),
        ({"storms": [{"arrival": "poisson", "rate": "5k"}]}, "storms.0.rate: rate '5k': a rate ends in"),
        ({"storms": [storms.poisson(span="32GiB")]}, "storms.0.span: '32GiB' is more than there is memory"),
        ({"storms": [storms.poisson(offset="16GiB")]}, "storms.0.offset: '16GiB' puts the span past memory"),
        ({"storms": [storms.poisson(vm=1)]}, "storms.0.vm: no VM 1; nearest is 0"),
        ({"storms": [storms.poisson(cpu=128)]}, "storms.0.cpu: no thread 128; nearest is 127"),
        ({"storms": [storms.poisson(cpu=0)] * 2}, "storms.0.cpu: thread 0 is taken by more than one"),
        ({"host": "icelake"}, "host: no host 'icelake'; nearest is 'icelake_sp_2s'"),
        (
            {"host": {"name": "milan_2s", "costs": {"exits": 1}}},
            "host.costs: unknown cost 'exits'; nearest is 'exit'",
        ),
        ({"fault_path": "v6.2"}, "fault_path: no preset 'v6.2'"),
        (
            {"fault_path": {"preset": "v6.1", "reference": "hold"}},
            "fault_path.reference: 'hold' is not one of",
        ),
        ({"workload": "unifrm"}, "workload.kind: 'unifrm' is not one of"),
        ({"workload": {"kind": "uniform", "writes": 2}}, "workload.writes: 2 is out of range; nearest is 1"),
        ({"workload": "uniform"}, "until: missing: workload 'uniform' without accesses never ends"),
        (
            {"workload": workloads.snapshot_restore(working_set="17GiB")},
            "workload.working_set: '17GiB' is nothing",
        ),
        ({"workload": workloads.replay(vcpus=[[]])}, "vcpus: 64 for a replay of 1 vCPUs; nearest is 1"),
        ({"workload": workloads.replay(vcpus=[[[1 << 22, 0, 0]]]), "vcpus": 1}, "memory: 16GiB is less than"),
        ({"until": "10 parsecs"}, "until: time '10 parsecs'"),
        ({"until": "0 faults"}, "until: '0 faults' is neither"),
        ({"until": "0ms"}, "until: '0ms' ends before it starts"),
        ({"seed": -1}, "seed: -1 is not from 0 to 2**64 - 1; nearest is 0"),
        ({"levels": 3}, "levels: 3 is not one of 4, 5; nearest is 4"),
        ({"preempt": "ful"}, "preempt: 'ful' is not one of voluntary, none, full; nearest is 'full'"),
        ({"dirty_logging": 1}, "dirty_logging: 1 is not a truth value; nearest is True"),
        ({"schema": 2}, "schema: 2 is not known to this version; nearest is 1"),
    ],
)
def test_mistakes_say_what_where_and_the_nearest(changes, message):
    fields = {name: getattr(BASE, name) for name in Scenario.model_fields}
    with pytest.raises(InputError) as raised:
        Scenario(**(fields | changes))
    text = str(raised.value)
    assert text.startswith(message) and "\n" not in text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("storms.1.rate", "storms: no entry '1'; nearest is 0"),
        ("storms.0.rat", "storms.0: unknown key 'rat'; nearest is 'rate'"),
        ("storm.0.rate", "Scenario: unknown key 'storm'; nearest is 'storms'"),
        ("vcpus.0", "vcpus: has no parts"),
        ("host.costs.exits", "host.costs: unknown cost 'exits'; nearest is 'exit'"),
    ],
)
def test_mistaken_paths_say_where(path, message):
    with pytest.raises(InputError) as raised:
        BASE.with_path(path, "1/s")
    assert str(raised.value).startswith(message)


def test_more_ways_to_be_wrong():
    for make, message in [
        (lambda: workloads.replay(vcpus=[[[1, 2]]]), "vcpus: not a list a vCPU of"),
        (lambda: workloads.replay(vcpus=[[[1, 3, 4]]]), "vcpus: kind 3 of an access"),
        (lambda: storms.poisson(rate="1/s", think="1us"), "think: does not belong to it"),
        (lambda: storms.bursts(on="0ns"), "on: an on-phase needs time"),
        (lambda: storms.poisson(span="0B"), "span: '0B' is not a multiple of 4KiB; nearest is '4KiB'"),
        (lambda: storms.poisson(vm="all"), "vm: 'all' is neither a VM's number nor 'each'"),
        (lambda: Region("1GiB", fault_around="3KiB"), "fault_around: '3KiB' is not a power of two"),
        (lambda: Region("1GiB", backing="thp", folio_order=2), "folio_order: 2: backing 'thp' has its own"),
        (lambda: Scenario.from_toml("a = "), "not TOML: "),
        (lambda: Scenario.from_json("[]"), "a scenario is a table of fields"),
    ]:
        with pytest.raises(InputError) as raised:
            make()
        assert str(raised.value).startswith(message)
