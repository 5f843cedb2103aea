"""``python -m qwen3_embedding`` is the command line."""

from qwen3_embedding.cli import main

if __name__ == "__main__":
    main()
