"""One hypothesis profile for the whole suite: no deadline (shared machines), the same examples every time."""

import gc

from hypothesis import Phase, settings

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=8)  # `make check`, sanitizers
settings.register_profile(
    "first", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate]
)  # a failure will do
settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What is imported and collected stays: a collection of garbage looked through it again, 0.4 s each."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
