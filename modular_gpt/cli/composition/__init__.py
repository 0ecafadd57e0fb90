"""From words on the command line to typed configs, through Hydra."""
