"""The program `fasttracks`."""
