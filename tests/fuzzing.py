"""How many cases a parser is tried on: few in every run of the tests, many in `make soak`.

FACELAB_FUZZ_EXAMPLES=25000 pytest -m fuzz: so many for each test, and others at every start; without it each test
has its own small number, the same at every start.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings


def fuzzing(examples: int) -> Callable[[Any], Any]:
    """Marks a test `fuzz`, and says how many cases it gets.

    Args:
        examples: in every run of the tests.
    """
    asked = os.environ.get("FACELAB_FUZZ_EXAMPLES")
    chosen = settings(
        max_examples=int(asked) if asked else examples,
        derandomize=not asked,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return lambda test: pytest.mark.fuzz(chosen(test))
