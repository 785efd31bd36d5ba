"""Exported files in llama.cpp itself: `python -m benchmarks.llama_cpp`."""
