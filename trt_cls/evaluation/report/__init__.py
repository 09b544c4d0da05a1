"""HTML reports of evaluations and comparisons: one self-contained file each, without network access."""
