"""The machine: devices and threads, files that appear whole or not at all, progress."""
