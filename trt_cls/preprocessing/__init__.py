"""From image files to the network's input, equal to the bit on every executor (Pillow, C++, CUDA).

Knows decoding, resizing and normalization. Does not know: folders, labels, networks. Begin with `description`, then
`images` (decoding) and `pillow` (resize and crop), which define the pixels.
"""
