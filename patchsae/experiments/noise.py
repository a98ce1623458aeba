"""What a display says of the latents that it leaves out as noisy."""

from __future__ import annotations

from patchsae.words import counted, number


def left_out(count: int, above: float) -> str:
    """How many latents were left out for a mean activation above ``above``, and how to see them; "" where none was."""
    if count == 0:
        return ""
    were = "is" if count == 1 else "are"
    return (
        f"{counted(count, 'noisy latent')} (mean activation above {number(above)}) {were} left out; "
        "--noisy-above inf leaves none out."
    )
