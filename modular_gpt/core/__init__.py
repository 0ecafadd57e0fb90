"""What everything rests on: contracts, registry, settings, cache, files, errors."""
