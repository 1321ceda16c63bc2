"""The modules of the library, one file each, on real databases."""
