"""The pages of the application, one module each, and the server that gives them."""
