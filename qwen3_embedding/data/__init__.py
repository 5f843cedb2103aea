"""What a training example is, where it comes from and what is kept out. This room imports no torch."""

from qwen3_embedding.data.dedup import drop_duplicates, text_hash
from qwen3_embedding.data.files import read_folder, read_records, write_records
from qwen3_embedding.data.record import TASKS, Record, Task

__all__ = ["TASKS", "Record", "Task", "drop_duplicates", "read_folder", "read_records", "text_hash", "write_records"]
