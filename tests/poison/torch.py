"""tensorboardX imports PyTorch if it is there, which takes three seconds that no test needs."""

raise ImportError("no torch here")
