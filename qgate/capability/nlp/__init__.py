"""The gate's own engine: small, deterministic language work without a model download.

Tasks are pure functions (one file each) that run in child processes (`worker`, kept by `pool`); `executor`
makes a candidate of them like any other. docs/nlp.md fixes every result's shape and says how good it is.
"""
