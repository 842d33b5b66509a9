"""Draft a competition's TOML from a downloaded data folder, and check one against such a folder."""
