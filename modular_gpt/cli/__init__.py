"""The command line, which is the only room that imports Hydra."""
