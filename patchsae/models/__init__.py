"""The models: CLIP cut at a block, the autoencoder and its checkpoints, prompts, steering.

Adapted CLIPs are in `patchsae.adapters`; nothing here trains or measures.
"""
