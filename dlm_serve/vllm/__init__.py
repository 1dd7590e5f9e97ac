"""Nemotron-Labs-Diffusion on vLLM: the same decoding as on SGLang, inside vLLM's scheduler and V2 model runner.

`plugin` registers it, `ledger` names all of vLLM's that it stands on. vLLM's data path for drafted tokens carries the
blocks: a request's row is its pending token and `block_length - 1` further ones.
"""
