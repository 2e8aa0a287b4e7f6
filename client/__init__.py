"""The command line over the network: `python -m client`, installed as `roundhouse`."""
