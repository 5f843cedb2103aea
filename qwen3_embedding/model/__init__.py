"""PackedBatch in, hidden states, vectors and scores out. This room knows no text.

Shape suffixes in this room: T tokens of the batch · N sequences · R rows asked for · D hidden size · H query heads ·
K key/value heads · d head size · I intermediate size · V vocabulary · B equal runs of an attention group · L tokens of
a run.
"""
