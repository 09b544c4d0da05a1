"""Folders of images and what training and evaluation read from them."""
