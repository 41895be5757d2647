"""Papers retold: one folder each, run by ``python -m experiments.<paper>``."""
