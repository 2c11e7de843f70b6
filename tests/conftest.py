"""For all tests: what one needs and does not find is a visible skip for a newcomer, and a failure in CI.

In several processes (`-n auto`) each file's tests are one's own, in their order. Names of tests have to be the same in
each process, so what goes into a parameter's `id` may not be made up anew.
"""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI has to have what it needs: {report.longrepr}"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are processors: tests wait for a good part of their time."""
    return (os.cpu_count() or 1) + 1
