"""What takes long to import, done once in the process that the others are forked from. Starts no thread."""

import open_clip
import torch
import torch._dynamo

import patchsae.training.mesh
from patchsae.experiments import adaptation, extract, masking
from patchsae.training import trainer

torch.set_num_threads(1)
MODULES = (open_clip, torch._dynamo, patchsae.training.mesh, adaptation, extract, masking, trainer)
