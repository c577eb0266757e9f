# Empty dependencies file for fasttracks.
# This may be replaced when dependencies are built.
