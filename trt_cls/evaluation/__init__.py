"""How good a model is on labelled images, which labels it gives, and how far two models agree."""
