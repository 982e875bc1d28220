"""For all tests: no limit of time decides one, and what one starts ends with it, also where it fails or is stopped."""

import signal
import threading
from collections.abc import Callable, Iterator
from subprocess import Popen

import pytest
from hypothesis import HealthCheck, settings
from running import starting

settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_configure() -> None:
    """Let a request to end (SIGTERM) stop the tests as Ctrl-C does, so that what they started is ended."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture
def started() -> Iterator[Callable[..., Popen]]:
    """As `running.starting`, for the length of a test."""
    with starting() as start:
        yield start
