"""What the tests of benchmarks share: the machine of a record."""

from __future__ import annotations

MACHINE = {
    "processor": "some CPU",
    "cores": 2,
    "versions": {"Python": "3.11.7", "numpy": "1.26.4"},
    "commit": "abc1234",
    "busy_cores_before": 0.02,
    "busy_cores_after": 0.05,
}
