"""Frozen backbones: stimulus -> embedding."""
