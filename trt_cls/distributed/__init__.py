"""Several processes that do one piece of work together: how they start, find each other, share work and end."""
