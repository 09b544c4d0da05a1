"""What of trt-cls can run on this machine, and what to do about the rest."""
