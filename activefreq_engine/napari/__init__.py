"""A plug-in for napari: clicks on an image become labels.  docs/napari.md shows it.

`annotation` knows nothing of napari or Qt; `widget` is what the viewer shows.
"""
