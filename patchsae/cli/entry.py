"""The command line: ``patchsae VERB``. Here a verb is found, told its preset and called, and errors become messages."""

from __future__ import annotations

import contextvars
import difflib
import functools
import io
import itertools
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from importlib import metadata
from typing import TextIO, get_type_hints

import tyro

from patchsae.cli.verbs import PRESET, TOGETHER, VERBS
from patchsae.disk.again import GIVEN
from patchsae.errors import PatchsaeError
from patchsae.interrupt import Interrupted


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A mistake of the user ends with a message and status 2; PATCHSAE_TRACEBACK=1 shows where it was.

    Where nobody reads on (`patchsae ... | head`) it ends as other programs do, without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text, nor the terminal UTF-8
    try:
        try:
            _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _hang_up():
            raise
        raise SystemExit(128 + signal.SIGPIPE) from None


def _hang_up() -> bool:
    """Whether a reader of our output is gone; what is still buffered for it goes nowhere."""
    outputs = select.poll()
    for stream in (sys.stdout, sys.stderr):
        outputs.register(stream.fileno(), select.POLLOUT)
    gone = [descriptor for descriptor, event in outputs.poll(0) if event & select.POLLERR]
    for descriptor in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)


def _main(arguments: Sequence[str] | None) -> None:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    if argv[0] == "--version":
        print(metadata.version("patchsae"))
        return
    verb, rest = _verb(argv)
    if verb is None:
        raise SystemExit(_no_verb(argv))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and verb not in TOGETHER:
        shared = ", ".join(TOGETHER)
        raise SystemExit(f"patchsae {verb} runs in one process: start it without torchrun (that is for {shared})")
    warnings.showwarning = _say_warning
    _run(verb, rest)


def _run(verb: str, arguments: Sequence[str]) -> None:
    """Call a verb with its options; what a user can do something about ends as a message."""
    try:
        function = _with_preset(verb, arguments)
        context = contextvars.copy_context()
        context.run(GIVEN.set, tuple(arguments))
        context.run(tyro.cli, function, prog=f"patchsae {verb}", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":  # the others were stopped by the same signal
            print(stop, file=sys.stderr)
        raise
    except KeyboardInterrupt:  # before or after the long work, which notes signals itself
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, PatchsaeError) as error:
        if os.environ.get("PATCHSAE_TRACEBACK"):
            raise
        print(f"patchsae {verb}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What a user is warned of as a line; of programmers' warnings, where they come from too."""
    place = "" if category is UserWarning else f" ({category.__name__}, {filename}:{lineno})"
    print(f"warning: {message}{place}", file=file or sys.stderr)


def _with_preset(verb: str, arguments: Sequence[str]) -> Callable[..., None]:
    """The verb's function with what --preset says as its defaults: options come before it."""
    chosen = [value for word, value in itertools.pairwise(arguments) if word == "--preset"]
    chosen += [word.removeprefix("--preset=") for word in arguments if word.startswith("--preset=")]
    if verb not in PRESET or not chosen:
        return VERBS[verb]
    from patchsae.training import presets

    hints = get_type_hints(VERBS[verb], include_extras=True)
    expected = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    given = {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    return functools.partial(VERBS[verb], **presets.groups(chosen[-1], expected, given))


def _verb(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The verb, of one or two words, and what follows it."""
    for words in (2, 1):
        name = " ".join(argv[:words])
        if name in VERBS:
            return name, list(argv[words:])
    return None, []


def _no_verb(argv: Sequence[str]) -> str:
    """What was meant by a word that is no verb, or else what there is."""
    words = (" ".join(argv[:2]), argv[0])
    close = [verb for verb in VERBS if verb.startswith(f"{argv[0]} ")]
    close = close or [verb for word in words for verb in difflib.get_close_matches(word, VERBS, 1, 0.7)][:1]
    said = f"patchsae: there is no verb {argv[0]!r}"
    return f"{said}; did you mean {' or '.join(close)}?" if close else f"{_overview()}\n\n{said}"


def _overview() -> str:
    lines = ["usage: patchsae VERB [options]    (patchsae VERB --help tells more)", ""]
    width = max(map(len, VERBS))
    lines += [f"  {name:<{width}}  {(function.__doc__ or '').splitlines()[0]}" for name, function in VERBS.items()]
    return "\n".join(lines)
