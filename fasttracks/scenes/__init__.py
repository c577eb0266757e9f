"""Generated scenes: casual clips with full truth, for training and for judging."""
