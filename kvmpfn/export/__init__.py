"""A run's events as files for other tools: Parquet, ftrace text, trace.dat, the JSON of the Perfetto UI."""

from kvmpfn.export.files import FORMATS, check_events_file, write_events

__all__ = ["FORMATS", "check_events_file", "write_events"]
