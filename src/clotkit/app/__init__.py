"""The application in a browser: `clotkit app`. The pages (page_*.py, pages.py) know Streamlit, the rest does not."""
