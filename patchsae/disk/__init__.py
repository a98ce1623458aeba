"""What lies on disk and how it gets there: runs and stages, atomic files, checksums, locks, files of strangers.

Nothing here knows what a CLIP, an autoencoder or a result is; of verbs, their names (`again`).
"""
