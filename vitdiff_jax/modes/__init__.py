"""One module per --mode; the keyword arguments of its `main` are the mode's flags."""
