"""Recordings of events: text of ftrace, trace-cmd, perf and bpftrace into columns."""
