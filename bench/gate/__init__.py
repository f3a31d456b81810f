"""Compares two results folders and says whether anything has become worse. No torch."""
