"""Refinement of a prediction to its tracks: bundle adjustment, fine-tuning."""
