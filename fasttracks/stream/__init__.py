"""Tracks as they arrive, a frame at a time, to cameras and points in a world that stays put."""
