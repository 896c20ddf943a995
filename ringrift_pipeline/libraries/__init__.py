"""Libraries that take settings from a file of the current folder, imported so that they do not.

Whatever needs one of them takes it from here.
"""
