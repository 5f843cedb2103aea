"""The project's own CPU kernel: one C++ source, compiled on first use, called through ctypes."""
