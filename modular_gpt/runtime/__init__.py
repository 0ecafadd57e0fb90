"""The machine and its processes: devices, precision, threads, signals, memory, versions."""
