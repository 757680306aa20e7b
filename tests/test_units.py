import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpfn.units import (
    TIME_LIMIT_PS,
    InputError,
    format_size,
    format_time,
    nearest,
    parse_rate,
    parse_size,
    parse_time,
)

same = settings(derandomize=True, database=None, deadline=None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 1 << 34),
        ("4KiB", 4096),
        ("1.5KiB", 1536),
        ("7B", 7),
        ("7", 7),
        (" 1_024 MiB ", 1 << 30),
        (9, 9),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("4us", 4 * 10**6),
        ("4µs", 4 * 10**6),
        ("0.1ns", 100),
        ("1s", 10**12),
        ("2ms", 2 * 10**9),
        ("0ns", 0),
        (0, 0),
    ],
)
def test_times(text, time):
    assert parse_time(text) == time


def test_times_round_half_to_even():
    assert [parse_time(f"{half}ps") for half in ("0.5", "1.5", "2.5")] == [0, 2, 2]


@pytest.mark.parametrize(
    ("text", "gap"),
    [("50k/s", 20 * 10**6), ("1M/s", 10**6), ("3/s", 333_333_333_333), ("19.531 k / s", 51_200_655)],
)
def test_rates_are_mean_gaps(text, gap):
    assert parse_rate(text) == gap


@pytest.mark.parametrize(
    ("parse", "text", "near"),
    [
        (parse_size, "16GB", "'16GiB'"),
        (parse_size, "3mib", "'3MiB'"),
        (parse_size, "lots", "'16GiB'"),
        (parse_size, "0.3B", "'0B'"),
        (parse_size, -4096, "'16GiB'"),
        (parse_size, True, "'16GiB'"),
        (parse_time, "4usec", "'4us'"),
        (parse_time, 4, "'4ns'"),
        (parse_time, "4", "'4ns'"),
        (parse_time, "3000000s", "'9007s'"),
        (parse_time, "-1us", "'4us'"),
        (parse_rate, "50k", "'50k/s'"),
        (parse_rate, "50K/s", "'50k/s'"),
        (parse_rate, "0/s", "'0.001/s'"),
        (parse_rate, "9000000M/s", "'1000000M/s'"),
        (parse_rate, 50, "'50k/s'"),
    ],
)
def test_errors_are_one_line_with_the_nearest_value(parse, text, near):
    with pytest.raises(InputError) as raised:
        parse(text)
    message = str(raised.value)
    assert near in message and "\n" not in message and repr(text) in message


@same
@given(st.integers(0, 1 << 50))
def test_a_written_size_reads_back(size):
    assert parse_size(format_size(size)) == size


@same
@given(st.integers(0, TIME_LIMIT_PS - 1))
def test_a_written_time_reads_back(time):
    assert parse_time(format_time(time)) == time


def test_nearest_ignores_case():
    assert nearest("HELD", ("none", "held")) == "held"


def test_an_error_keeps_its_place_between_processes():
    error = pickle.loads(pickle.dumps(InputError("wrong", "rate").within("storms.0")))
    assert (str(error), error.where) == ("storms.0.rate: wrong", "storms.0.rate")


def test_a_class_name_gives_way_to_the_place():
    assert str(InputError("wrong", "Storm").within("storms.0")) == "storms.0: wrong"
