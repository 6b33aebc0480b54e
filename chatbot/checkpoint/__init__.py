"""Checkpoint folders: find, load, save, convert from and to other projects."""
