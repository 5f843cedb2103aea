"""Records in, a checkpoint out: batches, losses, the step, the loop.

Shape suffixes in this room: N queries of the global batch (rows) · M hard negatives of all of them · E known positives
of a query · R rows and C columns of a tile · D vector size · K vector sizes trained at once · G pairs of a reranker
batch · T tokens.
"""
