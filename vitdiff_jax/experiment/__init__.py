"""A checked config, and what it describes: process, network, data, EMAs."""
