"""HTML reports: one file each that needs no network, for people who look at them on any screen."""
