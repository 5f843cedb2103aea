"""Many processes: who does which share, and weights kept in parts. The only place that knows torch.distributed."""

from qwen3_embedding.training.distributed.ranks import Ranks, joined

__all__ = ["Ranks", "joined"]
