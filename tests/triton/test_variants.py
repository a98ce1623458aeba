"""The tests of `tests.kernels.test_variants` once more, through the interpreted kernels."""

from tests.kernels.test_variants import *  # noqa: F403
