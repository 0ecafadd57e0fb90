"""The machine and its processes: devices, precision, signals, memory, versions."""
