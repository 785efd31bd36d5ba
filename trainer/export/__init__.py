"""A trained adapter in the form that another program takes: GGUF for llama.cpp, a folder for Ollama."""
