"""Structured channel pruning: which filters go, by TAO's rules, and the smaller network without them.

`graph` says which filters stay or go together, `selection` which go, `surgery` cuts, `prune` goes from file to file.
"""
