"""The validated config, and the objects it describes: process, network, data, EMAs."""
