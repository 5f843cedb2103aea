"""gRPC in the words of text-embeddings-inference (``tei.v1``), on the same models and queues as the HTTP routes."""
