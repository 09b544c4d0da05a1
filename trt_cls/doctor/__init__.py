"""Checks of the machine: `facts.py` collects what is installed, `checks.py` says whether it works together.

Does not know: the command line. Begin with `checks.findings`.
"""
