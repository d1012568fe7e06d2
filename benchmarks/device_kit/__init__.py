"""The parts of `benchmarks/device.py`, which tries this program on the device of a machine."""
