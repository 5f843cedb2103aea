"""Strings in, :class:`PackedBatch` out. This room knows no weights and imports no torch."""
