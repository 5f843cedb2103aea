"""HTTP in, arrays out: the batching queue, the dialects of other servers, metrics, the playground, and a client."""
