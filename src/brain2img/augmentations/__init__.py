"""Changes of training signals, before the adapter, within a subject."""
