"""TAO's `.hdf5` models: reads them, finds their network and verifies it layer by layer, imports the weights.

Does not know: how networks are trained or exported. Begin with `network.py`.
"""
