"""Whether llama.cpp takes a grammar. Runs in a disposable process only: a bad one may abort it."""

from __future__ import annotations

import llama_cpp


def prove(grammar: str) -> str:
    """Why llama.cpp refuses ``grammar``; empty where it does not."""
    if "\0" in grammar:
        return "a grammar with a character of code 0 would end there for llama.cpp"
    sampler = llama_cpp.llama_sampler_init_grammar(None, grammar.encode(), b"root")
    if not sampler:
        return "llama.cpp cannot parse the grammar made of this schema"
    llama_cpp.llama_sampler_free(sampler)
    return ""
