"""One hypothesis profile for the whole suite: no deadline (shared machines), the same examples every time."""

from hypothesis import Phase, settings

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("short", deadline=None, derandomize=True, max_examples=10)  # where every example is slow
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=8)  # `make check`
settings.register_profile(
    "first", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate]
)  # a failure will do
settings.load_profile("suite")
