"""llama.cpp in child processes: batching, sampling, grammars, replay, and keeping clients apart."""
