"""The content of files: model files, sidecars, class maps, decoded once into typed values within known ranges.

What a function here returns is checked; everything else is refused in one line that names the file and the field.
Does not know: how a model is run. Begin with `model_file.py`.
"""
