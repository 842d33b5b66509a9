"""The application in a browser, `clotkit app`.

`pages/` draws with Streamlit; the other modules work without it.
"""
