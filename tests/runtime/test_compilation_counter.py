"""The time of compilations, where they are nested or run side by side."""

import time

import jax
import pytest

import fedjax_sim as fs

TRACE = "/jax/core/compile/jaxpr_trace_duration"
COMPILE = "/jax/core/compile/backend_compile_duration"


def test_time_counts_once_however_many_programs_share_it(monkeypatch):
    with fs.runtime.CompilationCounter() as counter:
        for now, event, seconds in (
            (10.0, TRACE, 1.0),  # from 9 to 10
            (12.0, TRACE, 0.5),  # from 11.5, nested in the next
            (13.0, TRACE, 2.0),  # from 11
            (14.0, COMPILE, 0.5),  # from 13.5
            (15.0, COMPILE, 2.5),  # from 12.5, beside two others
            (16.0, "/jax/another", 1.0),
        ):
            monkeypatch.setattr(time, "perf_counter", lambda now=now: now)
            jax.monitoring.record_event_duration_secs(event, seconds)
    assert counter.seconds == pytest.approx(1 + 4)
    assert counter.count == 2
