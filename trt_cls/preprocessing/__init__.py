"""From image files to the network's input: the description, and the executors that follow it to the bit."""
