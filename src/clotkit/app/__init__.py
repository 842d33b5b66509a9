"""The application in a browser, `clotkit app`.

`web/` draws the pages and serves them, `deepzoom/` gives the tiles of slides; the other modules work without a server.
"""
