"""Choose for each request the mode and block length that decode it fastest. Imports neither SGLang nor a model.

What a step costs is in `costs`, how many tokens it yields in `yields`; `splits` weighs one against the other. A
`policy` picks a split: `measured`, which also tries out what may have become better, `rules`, or `pinned`. `router`
decides when to ask it, keeps what was decided, and tells the ranks.
"""
