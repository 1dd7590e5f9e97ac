"""Choose for each request the mode and block length that decode it fastest. Imports neither SGLang nor a model.

What a step costs is in `costs`, how many tokens it yields in `yields`; `policy` weighs one against the other, and
`router` decides when to, keeps what was decided, and tries out what may have become better.
"""
