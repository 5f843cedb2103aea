"""The objects that people hold: :class:`Embedder` and :class:`Reranker`, and the check of a checkpoint."""
