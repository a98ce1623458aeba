"""Training a sparse autoencoder by itself: `patchsae train`."""

from __future__ import annotations

from collections.abc import Sequence

from patchsae.disk.runs import Stage
from patchsae.models.checkpoints.load import load_sae
from patchsae.models.sae import SparseAutoencoder
from patchsae.parallel.base import Alone, Parallel
from patchsae.training.config import TrainConfig
from patchsae.training.learner import Learner
from patchsae.training.loggers import check_names
from patchsae.training.loop import Loop
from patchsae.training.origin import Origin
from patchsae.training.trainee import Trainee, begin


def train(
    origin: Origin,
    config: TrainConfig,
    stage: Stage,
    *,
    overwrite: bool = False,
    log: Sequence[str] = (),
    parallel: Parallel | None = None,
) -> SparseAutoencoder:
    """Train on tokens of images or of a cache, or go on where a killed or interrupted run of the same settings stopped.

    The defaults of `config` are the released recipe. Its code rescales the rows of W_dec at the start of the next step
    and not at the end of this one, so its final rows are one step off unit norm; the losses are the same. On the CPU a
    resumed run ends with the same bits as an unbroken one.

    Args:
        origin: `FromImages(clip, dataset)` or `FromCache(folder)`.
        stage: receives the autoencoder as sae.safetensors and config.json (`load_sae(stage.path)`), metrics.jsonl,
            what `log` writes, checkpoints while running, and the training part of the report. config.toml and the
            autoencoder's metadata say where the tokens came from.
        overwrite: start afresh whatever the stage holds.
        log: loggers beside metrics.jsonl; see `loggers.NAMES`.
        parallel: the processes that train together (`open_parallel`), each with the same arguments and a folder that
            all of them see; left out: this one alone.

    Returns:
        The trained autoencoder on the device of `origin`; that of the stage if it had finished already.

    Raises:
        NonFiniteLoss: the message names the step and its images; the state before it was saved.
        Interrupted: SIGINT or SIGTERM, after the checkpoint was written; a SystemExit.
        DamagedCheckpoints: there are checkpoints to go on from, and all of them are damaged.
        BadImage: an image cannot be decoded and `config.on_bad_image` is "stop".
        DamagedShard: a shard of a cache is not what was written.
    """
    parallel = parallel or Alone(origin.device)
    check_names(log)
    block = origin.block
    # before the stage is begun: settings that are refused shall not be those that it was begun with
    feed = origin.feed(config, [block], parallel)
    learner = Learner(config, origin.width, origin.device, parallel, origin.metadata(config, block))
    with stage:
        if begin(stage, origin.settings(config, block), overwrite, parallel):
            Loop(feed, [Trainee(learner, stage, block)], stage.name, dropping=False).run(origin.images, log)
    return load_sae(stage.path, origin.device)
