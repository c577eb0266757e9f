# Empty dependencies file for poses.
# This may be replaced when dependencies are built.
