"""Images in and out of the program."""
