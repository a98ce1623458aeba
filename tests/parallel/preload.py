"""What takes long to import, done once in the process that the others are forked from. Starts no thread."""

import open_clip
import torch
import torch._dynamo

import patchsae.parallel.mesh
from patchsae.experiments.compare import experiment as adaptation
from patchsae.experiments.extract import experiment as extract
from patchsae.experiments.mask import experiment as masking
from patchsae.training import trainer

torch.set_num_threads(1)
MODULES = (open_clip, torch._dynamo, patchsae.parallel.mesh, adaptation, extract, masking, trainer)
