"""`python -m tests.triton.mutations [WORD ...]`: every bound and mask of encode and training weakened, one at a time.

In a copy of the tree, so nothing here is changed. A mutation that no test notices is printed and is the exit status;
one whose text is not in the code any more is an error. WORD: only the mutations whose file or text holds one of them.

Not here, because their loss changes no result: what only saves work (how far apart the steps of a gather are, zeros
that are left out before the search, tokens with far too many buckets), and masks of what a factor of 0 or a NaN removes
again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
KERNELS = Path("patchsae_kernels/triton")
PARTS = ("patchsae_kernels", "patchsae", "tests", "benches", "pyproject.toml")


class Mutation(NamedTuple):
    """``text``, which stands in a file of `KERNELS`, becomes ``other``; ``tests`` are files of tests/triton."""

    file: str
    text: str
    other: str
    tests: str


ENCODE, HITS, WORK, DECODE = "encode", "hits", "workspace", "decode"
MUTATIONS = (
    # The bound of the screening, and what makes it up.
    Mutation("product.py", "(R * u + Q * v + 2.0**-22 * b)", "(Q * v + 2.0**-22 * b)", f"{ENCODE} {HITS}"),
    Mutation("product.py", "(R * u + Q * v + 2.0**-22 * b)", "(R * u + 2.0**-22 * b)", f"{ENCODE} {HITS}"),
    Mutation("product.py", "2.0**-22 * b) * (1 + 2.0**-20)", "0 * b) * (1 + 2.0**-20)", f"{HITS} {ENCODE}"),
    Mutation("product.py", 'tl.where(slack == slack, slack, float("inf"))', "slack", f"{ENCODE} {HITS}"),
    Mutation("product.py", "SURELY = 1 - 2.0**-20", "SURELY = 1 + 2.0**-12", f"{HITS} {ENCODE}"),
    Mutation("product.py", "grouped > -slack[:, :, None]", "grouped > 0.9 * slack[:, :, None]", f"{HITS}"),
    Mutation("pack.py", "norm * (1.0 + gamma), residual + norm * gamma", "norm * 0.9, residual + norm * gamma", ENCODE),
    Mutation("pack.py", "residual + norm * gamma\n", "residual * 0.5\n", ENCODE),
    Mutation("pack.py", "-1, BUCKET).amax(2)", "-1, BUCKET).amin(2)", f"{ENCODE} {HITS}"),
    Mutation("pack.py", "(size >= 2.0**-14) & (size <= 2.0)", "(size >= 2.0**-14)", ENCODE),
    Mutation("pack.py", 'b_enc.new_full((Sp,), float("-inf"))', "b_enc.new_full((Sp,), 0.5)", f"{HITS} {ENCODE}"),
    Mutation("centre.py", "tl.sum((t - back) * (t - back), 0)", "0.0 * tl.sum(t, 0)", f"{ENCODE} {HITS}"),
    Mutation("centre.py", "tl.sum(back * back, 0)", "0.0 * tl.sum(back, 0)", f"{ENCODE} {HITS}"),
    Mutation("centre.py", "tl.minimum(tl.maximum(exponent, 64), 190)", "exponent", ENCODE),
    Mutation("centre.py", "low = normal_or_zero(low)", "low = low", ENCODE),
    Mutation("centre.py", 'tl.abs(t) < float("inf")', "tl.abs(t) >= 0", ENCODE),
    Mutation(
        "centre.py",
        "tl.load(x_ptr + row * x_stride + d, inside,",
        "tl.load(x_ptr + row * x_stride + d, d < BLOCK,",
        ENCODE,
    ),
    Mutation("centre.py", "low, d < PADDED)", "low, d < BLOCK)", ENCODE),
    # Where products are the answer.
    Mutation("cutoffs.py", "tl.where(high % 2 == 0, 1, 0)", "0", HITS),
    Mutation("cutoffs.py", "SPACING // 2 - tie", "0 - tie", HITS),
    Mutation("cutoffs.py", "range(33)", "range(12)", HITS),
    Mutation("library.py", "product > cutoff", "product >= cutoff", HITS),
    Mutation("product.py", 'n < latents, other=float("inf"))[None, :]', "n < 0, other=0.0)[None, :]", HITS),
    # The tiles' edges.
    Mutation("product.py", "tl.minimum(m, rows - 1)", "m", f"{HITS} {ENCODE}"),
    Mutation("product.py", "tl.minimum(n, latents - 1)", "n", f"{HITS} {ENCODE}"),
    Mutation(
        "product.py",
        "acc.to(chunk.dtype.element_ty), (m < rows)[:, None] & (n < latents)[None, :]",
        "acc.to(chunk.dtype.element_ty), (n < latents)[None, :]",
        f"{HITS} {ENCODE}",
    ),
    Mutation(
        "product.py",
        "found, (m < rows)[:, None] & (bucket < buckets)[None, :]",
        "found, (bucket < buckets)[None, :]",
        f"{HITS} {ENCODE}",
    ),
    Mutation(
        "product.py",
        "found, (m < rows)[:, None] & (bucket < buckets)[None, :]",
        "found, (m < rows)[:, None]",
        f"{HITS} {ENCODE}",
    ),
    Mutation("product.py", "m * 3, m < rows, other=0.0)", "m * 3)", f"{HITS} {ENCODE}"),
    # From words to entries.
    Mutation("hits.py", "bucket, bucket < width, other=0)", "bucket)", HITS),
    Mutation("hits.py", "tl.where(count <= most, found, 0)", "found", HITS),
    Mutation("hits.py", "(place < capacity)", "(place >= 0)", HITS),
    Mutation("workspace.py", "torch.where(counts <= call.slots, counts, 0)", "counts", ENCODE),
    # Scored again, settled, written.
    Mutation(
        "pick.py",
        "end = tl.minimum(tl.load(pointers_ptr + tokens), places)",
        "end = tl.load(pointers_ptr + tokens)",
        f"{WORK}",
    ),
    Mutation(
        "pick.py",
        "inside = there[:, None] & (d < DEPTH)[None, :]",
        "inside = there[:, None] & (d < 2 * DEPTH)[None, :]",
        ENCODE,
    ),
    Mutation("pick.py", "end = first + tl.where(count <= SLOTS, count, 0)", "end = first + count", ENCODE),
    Mutation("pick.py", "(count > end - first) | (end > places)", "end > places", ENCODE),
    Mutation("pick.py", "(count > end - first) | (end > places)", "count > end - first", WORK),
    Mutation("pick.py", "over = count > SLOTS", "over = count < 0", ENCODE),
    Mutation("pick.py", "(value > least) & inside", "(value >= least) & inside", ENCODE),
    Mutation("pick.py", "(rank <= quota)", "(rank >= 0)", ENCODE),
    Mutation("pick.py", "keep & (place < capacity)", "keep", ENCODE),
    Mutation("pick.py", "tl.where(over, marked, 0)", "0", f"{WORK} {ENCODE}"),
    Mutation(
        "encode.py",
        "            over &= candidates != call.slots + 1\n",
        "            over &= candidates < 0\n",
        f"{ENCODE} {WORK}",
    ),
    # Top-k.
    Mutation("topk.py", "torch.bfloat16: 2.0**-8", "torch.bfloat16: 0.0", ENCODE),
    Mutation("topk.py", "return best - e, best + e", "return best, best + e", ENCODE),
    Mutation("topk.py", "return best - e, best + e", "return best - e, best", ENCODE),
    Mutation("topk.py", "e = R * u + Q * v + 0.00049", "e = Q * v + 0.00049", ENCODE),
    Mutation("topk.py", "fits = hit & (place < SLOTS)", "fits = hit", ENCODE),
    Mutation("topk.py", 'bucket, inside, other=float("-inf"))', "bucket, bucket >= 0)", ENCODE),
    # Decode, with the loss terms of training.
    Mutation("decode.py", "tl.minimum(whole - segment * SEGMENT, SEGMENT)", "whole - segment * SEGMENT", DECODE),
    Mutation(
        "decode.py",
        "exists = further < tl.load(further_count)\n        token",
        "exists = further >= 0\n        token",
        DECODE,
    ),
    Mutation("decode.py", "mask=inside & (segment < further))", "mask=inside)", DECODE),
    Mutation("decode.py", "entry, entry < count - whole, keep", "entry, entry < ROWS, keep", DECODE),
    # The training step.
    Mutation(
        "backward.py",
        "end = tl.minimum(tl.load(indptr + latent + 1), begin + SEGMENT)",
        "end = tl.load(indptr + latent + 1)",
        "backward",
    ),
    Mutation(
        "backward.py",
        "mask = there[:, None] & inside[None, :]\n        if g",
        "mask = there[:, None]\n        if g",
        "backward",
    ),
    Mutation("backward.py", "dot = tl.where(there, factor *", "dot = tl.where(at >= 0, factor *", "backward step"),
    Mutation("backward.py", "        if latent >= S:\n            return\n", "", "backward"),
    Mutation("backward.py", "(latent >= S) | (latent == before)", "latent >= S", "backward"),
    Mutation(
        "latent_major.py",
        "end = tl.minimum(tl.load(indptr + token + 1), places)",
        "end = tl.load(indptr + token + 1) + 1",
        "backward step graphed",
    ),
    Mutation("latent_major.py", ".clamp_(min=0)", "", "backward step"),
    Mutation("dense.py", "value = tl.where(mask, value, 0.0)", "value = value", "step"),
    Mutation(
        "dense.py",
        "mask = there[:, None] & (latent < S)[None, :]",
        "mask = (latent < S)[None, :] & (row >= 0)[:, None]",
        "step",
    ),
    Mutation(
        "dense.py",
        "mask = (row < tokens)[:, None] & inside[None, :]",
        "mask = (row >= 0)[:, None] & inside[None, :]",
        "step",
    ),
    Mutation("ghost.py", "tl.where(length > 0, 1 / tl.where(length > 0, length, 1.0), 0.0)", "1 / length", "step"),
    Mutation("ghost.py", "< part.number, biases", "< part.number + 1, biases", "step graphed"),
    Mutation("adam.py", "tl.where(inside, change, 0.0)", "change", "adam"),
    Mutation("adam.py", "rounded, mask=column < PADDED)", "rounded, mask=column >= 0)", "adam"),
    Mutation("adam.py", "tl.max(tl.abs(tl.where(inside, value, 0.0)), 0)", "tl.max(tl.abs(value), 0) * 0", "adam"),
    Mutation("step.py", "self.grads.dec,\n            x=x", "self.grads.dec,\n            x=2 * x", "step"),
    Mutation("step.py", "_equal(tokens, max(1, int(most)))", "_equal(tokens, tokens)", "step"),
)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.file or word in m.text for word in words)]
    unseen = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, tree / part)
        for mutation in chosen:
            started = time.monotonic()
            seen = noticed(tree, mutation)
            words_of = f"{mutation.file}: {_line(mutation.text)} -> {_line(mutation.other) or 'nothing'}"
            print(f"{'seen  ' if seen else 'UNSEEN'} {time.monotonic() - started:5.0f} s  {words_of}", flush=True)
            unseen += [] if seen else [words_of]
    print(f"{len(chosen)} mutations, {len(unseen)} unseen", *unseen, sep="\n")
    return min(len(unseen), 100)


def noticed(tree: Path, mutation: Mutation) -> bool:
    """Whether one of the tests fails with the mutation in the copy; the copy is as it was afterwards."""
    path = tree / KERNELS / mutation.file
    code = path.read_text()
    if mutation.text not in code:
        raise ValueError(f"{mutation.file} does not hold {mutation.text!r}")
    path.write_text(code.replace(mutation.text, mutation.other))
    tests = [f"tests/triton/test_{name}.py" for name in mutation.tests.split()]
    command = [
        sys.executable,
        "-S",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile",
        "first",
        *tests,
    ]
    # -S leaves the installed package's import hook out, so that the copy is what is tested.
    paths = os.pathsep.join([str(tree), sysconfig.get_paths()["purelib"]])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return True  # it hangs, which a run of the tests shows
    finally:
        path.write_text(code)
    if done.returncode > 1:
        raise ValueError(f"{mutation} is no code that runs: {done.stdout.decode()[-800:]}")
    return done.returncode != 0


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
