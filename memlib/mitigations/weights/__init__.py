"""Weights that are held responsible for memorized pictures: found, taken out for a while, and given back exactly.

    from memlib.mitigations.weights import pruned
    from memlib.mitigations.weights import nemo, wanda

    found = nemo.neurons(substrate, embedding, limit)      # one set of weights for each prompt
    with pruned(substrate, found[0].weights):
        ...                                                # sampling, attacks, anything

`nemo` looks for neurons in the value projections of cross-attention (Hintersdorf et al. 2024), `wanda` for single weights of the
feed-forward layers (Chavhan et al. 2024). Both are registered as mitigations (`memlib.mitigations.pruning`).
"""

from __future__ import annotations

from memlib.mitigations.weights.weight_sets import WeightSet, overlap, pruned, pruned_rows

__all__ = ["WeightSet", "overlap", "pruned", "pruned_rows"]
