"""What a file says: model files, sidecars, class maps, decoded once into typed values within known ranges.

Whoever calls a function of this room may believe what it returns; everything else is refused in one line that names
the file and the field. Nothing here runs a model.
"""
