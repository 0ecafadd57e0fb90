"""From the command line to typed configs, by Hydra."""
