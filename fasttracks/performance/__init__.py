"""Accuracy and speed of the network on this machine, and its tuning."""
