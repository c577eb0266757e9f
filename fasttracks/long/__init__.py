"""Clips of any length: windows, joined, then adjusted together."""
