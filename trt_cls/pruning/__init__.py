"""Structured channel pruning by TAO's rules: removes filters and gives a smaller network that still can be trained.

Does not know: architectures, training. `trace` finds which filters stay or go together, `selection` chooses, `surgery`
cuts; begin with `prune`, which goes from checkpoint to checkpoint.
"""
