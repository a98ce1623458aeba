"""What takes long to import, done once in the process that the others are forked from. Starts no thread."""

import open_clip
import torch
import torch._dynamo

import patchsae.experiments.compare.experiment
import patchsae.experiments.extract.experiment
import patchsae.experiments.mask.experiment
import patchsae.parallel.mesh
from patchsae.training import trainer

torch.set_num_threads(1)
MODULES = (open_clip, torch._dynamo, patchsae, trainer)
