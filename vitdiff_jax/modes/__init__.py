"""One file for each --mode; the keyword arguments of its `main` are the mode's flags."""
