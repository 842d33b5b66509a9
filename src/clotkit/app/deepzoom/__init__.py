"""Slides for a deep zoom viewer: tiles on demand, overviews and overlays, read in limited processes.

`grid` has the arithmetic, `picture` reads a slide in its process, `readers` keeps such processes, `routes` answers
HTTP.
"""
