"""Engines that run models: llama.cpp in child processes, Ollama, and OpenAI-compatible servers."""
