"""Sequence decoders: one file per family over shared layers. Nothing here imports `bench`."""
