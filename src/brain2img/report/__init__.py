"""Grids, tables, figures and the HTML page; reads artifacts only."""
