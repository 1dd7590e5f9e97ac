"""Choose for each request the mode and block length that decode it fastest. Imports neither SGLang nor a model.

What a step costs is in `costs`, how likely drafts are wrong in `drafts`, and how many tokens a forward yields in
`yields`; `splits` weighs one against the other. A `policy` picks a split: `measured`, which also tries out what may
have become better, `rules`, or `pinned`. `router` decides when to ask it, keeps what was decided, and tells the ranks.
"""
