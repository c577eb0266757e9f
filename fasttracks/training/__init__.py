"""Training: generated scenes, supervision, and the loop."""
