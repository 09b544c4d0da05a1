"""TAO's `.hdf5` models: which network one holds, proved by comparing graphs, and its weights under our names.

Does not know: how the networks are trained or exported. Begin with `network.py`.
"""
