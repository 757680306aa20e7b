import pytest

from kvmpfn.hosts import COSTS, Cost, Host
from kvmpfn.units import InputError


@pytest.mark.parametrize("name", Host.names())
def test_every_host_has_every_cost_with_its_source_or_reason(name):
    host = Host.load(name)
    assert set(host.costs) == set(COSTS) and not host.extrapolated and host.title
    for cost in host.costs.values():
        assert cost.low <= cost.value <= cost.high
        assert cost.source if cost.status == "read" else cost.reason


@pytest.mark.parametrize("name", Host.names())
def test_farther_is_never_faster(name):
    host = Host.load(name)
    for what in ("latency", "occupancy"):
        times = [host.cost_ps(f"{distance}_{what}") for distance in ("core", "llc", "socket", "remote")]
        assert times == sorted(times)


def test_icelake():
    host = Host.load("icelake_sp_2s")
    assert (host.threads, host.cores, host.cost_ps("own_add"), host.factor("smt_percent")) == (
        128,
        64,
        6100,
        160,
    )
    assert host.cost_ps("exit") + host.cost_ps("entry") == 500_000
    assert sum(host.cost_ps(f"handler_{part}") for part in ("entry", "lock", "map", "return")) == 350_000
    assert "memory_latency" in host.assumed and "socket_latency" not in host.assumed


def test_threads_are_numbered_socket_by_socket_siblings_last():
    host = Host.load("milan_2s")
    places = host.topology()
    assert len(places) == host.threads == 256
    assert places[:128] == places[128:]
    assert places[0] == (0, 0, 0) and places[8] == (8, 1, 0) and places[64] == (64, 8, 1)
    assert places[127] == (127, 15, 1)


@pytest.mark.parametrize(
    ("placement", "first"),
    [("cores", [0, 1, 2, 3]), ("spread", [0, 32, 1, 33]), ("smt", [0, 64, 1, 65])],
)
def test_placements(placement, first):
    host = Host.load("icelake_sp_2s")
    assert host.place(placement, 4) == first
    assert sorted(host.place(placement, 128)) == list(range(128))


def test_siblings_come_last_unless_asked_for():
    host = Host.load("icelake_sp_2s")
    cores = [core for core, _, _ in host.topology()]
    for placement in ("cores", "spread"):
        assert len({cores[cpu] for cpu in host.place(placement, 64)}) == 64
    assert len({cores[cpu] for cpu in host.place("smt", 64)}) == 32


def test_scaled_hosts_keep_their_caches_and_say_so():
    host = Host.scaled("icelake_sp_2s", sockets=8, cores=64)
    assert (host.threads, host.llcs_per_socket, host.cores_per_llc, host.extrapolated) == (1024, 2, 32, True)
    small = Host.scaled("icelake_sp_2s", sockets=1, cores=4)
    assert (small.threads, small.llcs_per_socket, small.cores_per_llc) == (8, 1, 4)
    assert Host.scaled("icelake_sp_2s", sockets=2) == Host.load("icelake_sp_2s")


def test_changed_costs():
    host = Host.load("icelake_sp_2s").with_cost("exit", 0.0005).with_cost("cas_factor", 5)
    assert (host.cost_ps("exit"), host.factor("cas_factor")) == (0, 5)
    assert host.with_cost("exit", "0.0015ns").cost_ps("exit") == 2
    assert host.with_path("costs.exit", 3).cost_ps("exit") == 3000
    assert Host.load("icelake_sp_2s").cost_ps("exit") == 250_000


@pytest.mark.parametrize(
    "host",
    [
        Host.load("icelake_sp_2s"),
        Host.scaled("icelake_sp_2s", sockets=8),
        Host.scaled("milan_2s", cores=96).with_cost("exit", 12.5),
        Host.load("milan_2s").replace(name="mine", title="a machine of my own"),
    ],
)
def test_what_is_written_reads_back(host):
    assert Host.from_plain(host.plain()) == host


def test_only_hosts_with_the_flaw_have_it():
    assert [name for name in Host.names() if Host.load(name).itlb_multihit] == ["skylake_sp_2s"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Host.load("icelake"), "Host: no host 'icelake'; nearest is 'icelake_sp_2s'"),
        (
            lambda: Host.load("icelake_sp_2s").with_cost("exits", 3),
            "costs: unknown cost 'exits'; nearest is 'exit'",
        ),
        (
            lambda: Host.load("icelake_sp_2s").with_cost("exit", -1),
            "costs.exit: -1 is out of range; nearest is 0",
        ),
        (
            lambda: Host.load("icelake_sp_2s").with_cost("cas_factor", 2.5),
            "costs.cas_factor: 2.5 is not whole",
        ),
        (lambda: Host.load("icelake_sp_2s").cost_ps("lru_batch"), "costs: 'lru_batch' is not a time"),
        (lambda: Host.load("icelake_sp_2s").cost_ps("exits"), "costs: unknown cost 'exits'"),
        (lambda: Host.load("icelake_sp_2s").factor("exit"), "costs: 'exit' is not a plain number"),
        (lambda: Host.load("icelake_sp_2s").place("cores", 129), "Host: 129 threads asked for"),
        (lambda: Host.load("icelake_sp_2s").place("core", 1), "placement: 'core' is not one of"),
        (lambda: Host.scaled("icelake_sp_2s", cores=40), "cores: 40 is not a multiple of 32; nearest is 32"),
        (
            lambda: Cost(value=3, low=4, high=5, status="read", source="x"),
            "value: 3 is not from low 4 to high 5",
        ),
        (lambda: Cost(value=3, low=3, high=5, status="read"), "source: status 'read' needs one"),
        (lambda: Cost(value=3, low=3, high=5, status="assumed"), "reason: status 'assumed' needs one"),
        (lambda: Host.load("milan_2s").replace(costs={}), "costs: milan_2s has no 'own_add'"),
    ],
)
def test_mistakes_name_the_nearest(make, message):
    with pytest.raises(InputError) as raised:
        make()
    assert str(raised.value).startswith(message)
