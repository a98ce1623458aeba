"""One hypothesis profile for the whole suite: no deadline (shared machines), the same examples every time."""

from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("suite")
